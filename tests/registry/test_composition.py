"""What makes a group of each kind, without any table."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from stacked.errors import GroupInvalid, KeyTooLong, RecordConflict
from stacked.registry import GroupMember, GroupRecord, Model, ModelState
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


def test_experiments_are_on_the_groups_own_keys_and_a_base_without_one_is_base() -> None:
    def declared(arm: str, *members: GroupMember) -> GroupRecord:
        text = json.dumps([{"key": "sql", "arms": [{"key": arm}]}])
        metadata = ({"key": "stacked.experiments", "value": text},)
        return group(members=members, custom_metadata=metadata)

    one, named = GroupMember(adapter(0).id, "k"), GroupMember(BASE, "its")
    unnamed = GroupMember(BASE)
    for arm, base_entry in (("k", named), ("its", named), ("base", unnamed)):
        check_composition(declared(arm, base_entry, one), models())
    for arm, base_entry in (("x", named), ("base", named)):
        with pytest.raises(GroupInvalid, match=r"stacked\.experiments\.0\.arms\.0\.key"):
            check_composition(declared(arm, base_entry, one), models())


@pytest.mark.parametrize("state", [ModelState.INACTIVE, ModelState.FAILED, ModelState.DELETED])
@pytest.mark.parametrize("kind", ["STACKED", "HOMOGENEOUS", "HETEROGENEOUS"])
def test_every_member_of_every_kind_is_active(state: ModelState, kind: str) -> None:
    off = adapter(9, base_model_id=BASE, state=state)
    with pytest.raises(RecordConflict, match=state.value):
        check_composition(group(9, kind=kind), models(off))


@pytest.mark.parametrize("kind", ["HOMOGENEOUS", "HETEROGENEOUS"])
def test_other_kinds_are_models_that_need_no_base(kind: str) -> None:
    empty = Model(id="ocid1.datasciencemodel.oc1..empty")
    plain = Model(id="ocid1.datasciencemodel.oc1..plain", kind="model")
    there = models(empty, plain)

    def check(*ids: str) -> None:
        members = tuple(GroupMember(id, f"k{at}") for at, id in enumerate(ids))
        check_composition(group(kind=kind, base_model_id=None, members=members), there)

    check(plain.id, plain.id)
    with pytest.raises(RecordConflict, match="no artifact yet"):
        check(plain.id, empty.id)
    for id, found in ((BASE, "base"), (adapter(0).id, "adapter")):
        with pytest.raises(GroupInvalid, match=f"is of kind {found}; members of a {kind} group"):
            check(plain.id, id)
    for id, said in ((empty.id, "no artifact yet"), (plain.id, "is of kind model")):
        with pytest.raises((GroupInvalid, RecordConflict), match=said):
            check_composition(group(members=(GroupMember(BASE), GroupMember(id, "a"))), there)


def test_500_fine_tunes_fit_beside_the_base() -> None:
    many = {m.id: m for m in (adapter(n, base_model_id=BASE) for n in range(501))}
    check_composition(group(*range(500)), models() | many)
    with pytest.raises(GroupInvalid, match="501 members"):
        check_composition(group(*range(501)), models() | many)
