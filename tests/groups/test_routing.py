"""The routing table: what a name means, and what it never means."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.core import (
    Adapter,
    Base,
    Digest,
    Member,
    ModelFiles,
    ModelGroup,
    ModelId,
    Runtime,
    model_id_of,
)
from stacked.errors import (
    GroupInvalid,
    KeyConflict,
    KeyInUse,
    KeyMissing,
    KeyRemoved,
    KeyTooLong,
    KeyUnknown,
    ModelQuarantined,
)
from stacked.groups.routing import Routing

BASE = Base(ModelId("ocid1.datasciencemodel.oc1..base"), "base", "/base")


def adapter(number: int) -> Adapter:
    digest = Digest(f"sha256:{number:064x}")
    return Adapter(digest, Path(f"/store/{number}"), 1000, 8, ("q_proj",))


def member(key: str | None, number: int) -> Member:
    one = adapter(number)
    return Member(model_id_of(one.digest), one, key)


def routing(*members: Member) -> Routing[str]:
    return Routing.of(BASE, members, {m.content.digest: f"h{m.content.digest}" for m in members})


def test_key_and_model_id_lead_to_the_same_adapter() -> None:
    table = routing(member("sql", 1), member("triage", 2))
    by_key = table.resolve("sql")
    assert by_key.handle == f"h{adapter(1).digest}"
    assert table.resolve(by_key.model_id) == by_key


def test_no_name_is_the_base() -> None:
    table = routing(member("sql", 1))
    assert table.resolve(None).handle is None
    assert table.resolve("base") == table.resolve(BASE.model_id) == table.resolve_all({})


def test_unknown_name_is_an_error_and_never_the_base() -> None:
    with pytest.raises(KeyUnknown, match="nope"):
        routing(member("sql", 1)).resolve("nope")
    with pytest.raises(KeyUnknown):
        routing().resolve("")


def test_too_long_a_key_says_so() -> None:
    with pytest.raises(KeyTooLong, match="33 characters"):
        routing().resolve("k" * 33)
    with pytest.raises(KeyUnknown):
        routing().resolve("ocid1.datasciencemodel.oc1.." + "a" * 60)


def test_two_places_that_agree_are_one_name_and_the_key_is_told() -> None:
    table = routing(member("sql", 1))
    route = table.resolve_all(
        {"header model-ocid": model_id_of(adapter(1).digest), "body model": "sql"}
    )
    assert route.key == "sql"


def test_two_places_that_differ_are_a_conflict() -> None:
    table = routing(member("sql", 1), member("triage", 2))
    with pytest.raises(KeyConflict, match=r"'sql'.*'triage'"):
        table.resolve_all({"header model-key": "sql", "body model": "triage"})
    with pytest.raises(KeyConflict):
        table.resolve_all({"header model-key": "sql", "body model": "base"})


def test_two_keys_may_name_one_model() -> None:
    table = routing(member("a", 1), member("b", 1))
    assert table.resolve("a").handle == table.resolve("b").handle
    assert table.resolve("a").label == "a"
    assert table.resolve("b").label == "b"
    # Each is told by the key that was used, and they do not conflict.
    assert table.resolve_all({"one": "a", "two": "b"}).model_id == table.resolve("a").model_id


def test_member_without_key_is_reached_by_its_model_id() -> None:
    one = member(None, 1)
    route = routing(one).resolve(one.model_id)
    assert route.label == one.model_id
    assert route.key is None


def test_removed_key_is_told_as_removed_and_then_as_unknown() -> None:
    table, gone = routing(member("sql", 1), member("triage", 2)).without("sql")
    assert [m.key for m in gone] == ["sql"]
    with pytest.raises(KeyRemoved):
        table.resolve("sql")
    settled = table.settled(frozenset({"sql", gone[0].model_id}))
    with pytest.raises(KeyUnknown):
        settled.resolve("sql")
    assert settled.resolve("triage").handle


def test_removing_one_of_two_keys_keeps_the_adapter() -> None:
    table, _ = routing(member("a", 1), member("b", 1)).without("a")
    assert table.resolve("b").handle
    assert adapter(1).digest in table.handles


def test_base_cannot_be_removed_and_taken_names_not_added() -> None:
    table = routing(member("sql", 1))
    with pytest.raises(KeyInUse):
        table.without("base")
    with pytest.raises(KeyInUse):
        table.with_member(member("sql", 2), "h2")
    with pytest.raises(GroupInvalid):
        ModelGroup("g", BASE, (member("sql", 1), member("sql", 2)))


def test_every_change_is_a_new_generation_and_leaves_the_old_table_as_it_was() -> None:
    first = routing(member("sql", 1))
    second = first.with_member(member("triage", 2), "h2")
    third, _ = second.without("sql")
    assert [t.generation for t in (first, second, third)] == [1, 2, 3]
    with pytest.raises(KeyUnknown):
        first.resolve("triage")
    assert first.resolve("sql").generation == 1


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9)), unique_by=lambda p: p[0]))
def test_each_key_leads_to_its_own_content(pairs: list[tuple[str, int]]) -> None:
    table = routing(*(member(key, number) for key, number in pairs))
    for key, number in pairs:
        assert table.resolve(key).digest == adapter(number).digest
    assert len(list(table)) == len(pairs) + 1


def test_what_the_group_says_of_a_member_is_there_when_a_request_is_admitted() -> None:
    sql = member("sql", 1)
    assert routing(sql).resolve("sql").member is sql
    assert routing(sql).resolve(None).member is None


def test_without_a_base_a_request_without_a_name_is_an_error() -> None:
    one = member("sql", 1)
    table = Routing.of(None, (one,), {one.content.digest: "h"})
    assert table.resolve("sql").handle == "h"
    assert [route.label for route in table] == ["sql"]
    with pytest.raises(KeyMissing, match="send an inference key"):
        table.resolve_all({})
    after, gone = table.without("sql")
    assert (after.members, gone) == ((), (one,))


def test_quarantined_content_is_withheld_under_all_of_its_names() -> None:
    before = routing(member("a", 1), member("b", 1), member("c", 2))
    after = before.withholding(adapter(1).digest, "it ended its process")
    assert [route.label for route in after] == ["base", "c"]
    assert (set(after.handles), after.generation) == ({adapter(2).digest}, before.generation)
    for name in ("a", "b", model_id_of(adapter(1).digest)):
        with pytest.raises(ModelQuarantined, match="it ended its process"):
            after.resolve(name)


def test_who_asks_for_what_is_not_there_is_told_where_the_keys_are() -> None:
    files = ModelFiles(adapter(3).digest, Path("/m"), 1, Runtime.ONNX)
    models = (Member(ModelId("ocid1.m.oc1..m"), files, "m"),)
    tables = {"/v1/models": routing(), "/v2/models": Routing.of(None, models, {files.digest: "h"})}
    for path, table in tables.items():
        with pytest.raises(KeyUnknown, match=path):
            table.resolve("nope")
