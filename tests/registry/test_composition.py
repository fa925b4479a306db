"""What makes a group of each kind, without any table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stacked.errors import GroupInvalid, KeyTooLong, RecordConflict
from stacked.registry import GroupMember, Model, ModelState
from stacked.registry.composition import check_composition
from tests.registry.samples import BASE, adapter, base, group


def models(*more: Model) -> dict[str, Model]:
    fine_tunes = (adapter(number, base_model_id=BASE) for number in range(4))
    return {model.id: model for model in (base(), *fine_tunes, *more)}


def test_a_base_and_its_adapters_are_a_stacked_group() -> None:
    check_composition(group(0, 1, 2), models())
    check_composition(group(), models())
    two_keys = (*group(0).members, GroupMember(adapter(0).id, "again"))
    check_composition(group(members=two_keys), models())


def test_an_adapter_of_the_same_base_under_another_id_is_one_of_it() -> None:
    twin = replace(base(), id=f"{BASE}-twin")
    its = adapter(9, base_model_id=twin.id)
    check_composition(group(9), models(twin, its))
    elsewhere = replace(twin, source="/another/place")
    with pytest.raises(GroupInvalid, match="is an adapter of base"):
        check_composition(group(9), models(elsewhere, its))
    with pytest.raises(GroupInvalid, match="is an adapter of base"):
        check_composition(group(9), models(replace(twin, digest="sha256:other"), its))
    with pytest.raises(GroupInvalid, match="is an adapter of base"):
        check_composition(group(9), models(its))  # its base is not known any more


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ((), "at least one member"),
        ((GroupMember(adapter(0).id, "k"),), "must be a member"),
        ((GroupMember(BASE, "a"), GroupMember(BASE, "b")), "2 times"),
        ((GroupMember(BASE, "k"), GroupMember(adapter(0).id, "k")), "used twice"),
        ((GroupMember(BASE), GroupMember(adapter(0).id), GroupMember(adapter(0).id)), "twice"),
    ],
)
def test_what_is_no_stacked_group_is_refused(members: Any, said: str) -> None:
    with pytest.raises(GroupInvalid, match=said):
        check_composition(group(members=members), models())


def test_a_key_is_checked_here_too() -> None:
    members = (GroupMember(BASE, "base"), GroupMember(adapter(0).id, "k" * 33))
    with pytest.raises(KeyTooLong):
        check_composition(group(members=members), models())


@pytest.mark.parametrize("state", [ModelState.INACTIVE, ModelState.FAILED, ModelState.DELETED])
@pytest.mark.parametrize("kind", ["STACKED", "HOMOGENEOUS", "HETEROGENEOUS"])
def test_every_member_of_every_kind_is_active(state: ModelState, kind: str) -> None:
    off = adapter(9, base_model_id=BASE, state=state)
    with pytest.raises(RecordConflict, match=state.value):
        check_composition(group(9, kind=kind), models(off))


def test_other_kinds_take_any_models_with_or_without_content() -> None:
    empty = Model(id="ocid1.datasciencemodel.oc1..empty")
    other = adapter(9, base_model_id="another")
    members = (GroupMember(empty.id, "a"), GroupMember(other.id, "b"))
    for kind in ("HOMOGENEOUS", "HETEROGENEOUS"):
        wanted = group(kind=kind, base_model_id=None, members=members)
        check_composition(wanted, models(empty, other))
    with pytest.raises(RecordConflict, match="no artifact yet"):
        check_composition(group(members=(GroupMember(BASE), *members)), models(empty, other))


def test_500_fine_tunes_fit_beside_the_base() -> None:
    many = {m.id: m for m in (adapter(n, base_model_id=BASE) for n in range(501))}
    check_composition(group(*range(500)), models() | many)
    with pytest.raises(GroupInvalid, match="501 members"):
        check_composition(group(*range(501)), models() | many)
