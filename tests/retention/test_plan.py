"""The decision: nothing that anybody needs is in it, and all that nobody needs is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stacked.core import Digest
from stacked.registry.retention import Version
from stacked.retention.plan import GOES, Needs, Reason, oldest, plan_contents, plan_versions
from stacked.store.shelf import Stored

NOW, UNUSED = 10**12, 100.0
LIMIT = NOW - round(UNUSED * 1e9)


def digest(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


digests = st.frozensets(st.integers(0, 12).map(digest))
contents = st.lists(
    st.builds(
        Stored,
        kind=st.sampled_from(["adapter", "base"]),
        digest=st.integers(0, 12).map(digest),
        bytes=st.integers(0, 100),
        used_ns=st.integers(LIMIT - 5, LIMIT + 5),
        awaited=st.booleans(),
    ),
    unique_by=lambda each: (each.kind, each.digest),
)
needs = st.builds(
    Needs, in_use=digests, pinned=digests, named=digests, elsewhere=digests, released=digests
)


@given(contents, needs)
def test_only_what_nobody_needs_goes_and_all_of_it(stored: list[Stored], needs: Needs) -> None:
    plan = plan_contents(stored, needs, now_ns=NOW, unused_seconds=UNUSED)
    judged = dict((*plan.remove, *plan.keep))
    assert set(judged) == set(stored)
    assert len(judged) == len(plan.remove) + len(plan.keep)
    needed = needs.in_use | needs.pinned | needs.named | needs.elsewhere
    for each, reason in judged.items():
        free = each.digest not in needed
        released = each.digest in needs.released and not each.awaited
        assert (reason in GOES) == (free and (released or each.used_ns <= LIMIT))


@given(contents, needs, digests)
def test_who_needs_more_loses_nothing_more(
    stored: list[Stored], needs: Needs, more: frozenset[Digest]
) -> None:
    def removed(needs: Needs) -> set[Digest]:
        plan = plan_contents(stored, needs, now_ns=NOW, unused_seconds=UNUSED)
        return {each.digest for each, _ in plan.remove}

    named = Needs(needs.in_use, needs.pinned, needs.named | more, needs.elsewhere, needs.released)
    assert removed(named) == removed(needs) - more


def test_the_least_recently_used_goes_first_and_every_one_has_its_reason() -> None:
    stored = [Stored("adapter", digest(at), 1, used_ns=LIMIT - at) for at in range(3)]
    plan = plan_contents(stored, Needs(released={digest(1)}), now_ns=NOW, unused_seconds=UNUSED)
    assert [(each.digest, reason) for each, reason in plan.remove] == [
        (digest(2), Reason.UNUSED),
        (digest(1), Reason.RELEASED),
        (digest(0), Reason.UNUSED),
    ]


def test_what_somebody_was_told_of_stays_though_its_models_are_deleted() -> None:
    stored = [Stored("adapter", digest(1), 1, used_ns=LIMIT + 1, awaited=True)]
    needs = Needs(released={digest(1)})
    assert not plan_contents(stored, needs, now_ns=NOW, unused_seconds=UNUSED).remove
    later = NOW + round(2e9 * UNUSED)
    assert plan_contents(stored, needs, now_ns=later, unused_seconds=UNUSED).remove


versions = st.lists(
    st.builds(
        Version,
        id=st.uuids().map(str),
        line=st.sampled_from("abc"),
        needed=st.sampled_from(["", "", "served"]),
    ),
    unique_by=lambda each: each.id,
)


@given(versions, st.integers(1, 4))
def test_the_newest_of_each_line_and_the_needed_stay(found: list[Version], keep: int) -> None:
    dropped = plan_versions(found, keep)
    assert not any(version.needed for version in dropped)
    for line in "abc":
        ordered = [version for version in found if version.line == line]
        going = [version for version in dropped if version.line == line]
        assert not set(ordered[:keep]) & set(going)
        assert going == [each for each in ordered[keep:] if not each.needed][::-1]


def test_the_newest_names_stay() -> None:
    assert oldest(["c", "a", "b"], 2) == ["a"]
    assert oldest(["a"], 2) == []
