"""What may be removed and why the rest stays, as pure functions."""

from __future__ import annotations

import enum
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from stacked.registry.retention import Version
from stacked.store.shelf import Stored


class Reason(enum.Enum):
    """Why something stays, strongest reason first, or is removed."""

    IN_USE = "served, staged, leased or draining"
    PINNED = "a running operation needs it"
    NAMED = "a model or a group version names it"
    ELSEWHERE = "records of another server of this data directory may name it"
    RECENT = "used within retention.unused_content"
    RELEASED = "the models and groups that named it were deleted"
    UNUSED = "nothing names it, and it was not used for longer than retention.unused_content"


GOES = frozenset({Reason.RELEASED, Reason.UNUSED})


@dataclass(frozen=True, slots=True)
class Needs:
    """Who needs content: digests by reason."""

    in_use: Container[str] = frozenset()
    pinned: Container[str] = frozenset()
    named: Container[str] = frozenset()
    elsewhere: Container[str] = frozenset()
    released: Container[str] = frozenset()
    """Content of deleted models, which can be removed at once."""


@dataclass(frozen=True, slots=True)
class ContentPlan:
    """What is removed, least recently used first, and what stays, each with its reason."""

    remove: tuple[tuple[Stored, Reason], ...] = ()
    keep: tuple[tuple[Stored, Reason], ...] = ()


def plan_contents(
    contents: Iterable[Stored], needs: Needs, *, now_ns: int, unused_seconds: float
) -> ContentPlan:
    """Decide about the content of the stores.

    What nothing names stays for `unused_seconds` after its last use, so that it need not be sent
    and checked again, unless its models were deleted. A client that was answered "it is here"
    may be about to register it: that counts as a use, whatever was deleted.
    """
    limit = now_ns - round(unused_seconds * 1e9)
    judged = [(each, _judge(each, needs, limit)) for each in contents]
    goes = sorted((pair for pair in judged if pair[1] in GOES), key=lambda pair: pair[0].used_ns)
    return ContentPlan(tuple(goes), tuple(pair for pair in judged if pair[1] not in GOES))


def _judge(stored: Stored, needs: Needs, limit: int) -> Reason:
    for reason, digests in (
        (Reason.IN_USE, needs.in_use),
        (Reason.PINNED, needs.pinned),
        (Reason.NAMED, needs.named),
        (Reason.ELSEWHERE, needs.elsewhere),
    ):
        if stored.digest in digests:
            return reason
    if stored.digest in needs.released and not stored.awaited:
        return Reason.RELEASED
    return Reason.RECENT if stored.used_ns > limit else Reason.UNUSED


def plan_versions(versions: Sequence[Version], keep: int) -> list[Version]:
    """The group versions beyond the `keep` newest of their history, oldest first.

    `versions` are the newest first. One that is needed stays, and counts.
    """
    seen: dict[str, int] = {}
    old = []
    for version in versions:
        seen[version.line] = seen.get(version.line, 0) + 1
        if seen[version.line] > keep and not version.needed:
            old.append(version)
    return old[::-1]


def oldest(names: Iterable[str], keep: int) -> list[str]:
    """All but the last `keep` of names that sort by age."""
    ordered = sorted(names)
    return ordered[: max(0, len(ordered) - keep)]
