"""A group change as a value: what to load, keep and drop, and a readable diff.

Pure functions from two groups; no engine, no clock, no log. A renamed key loads nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from stacked.core import Content, Digest, Member


@dataclass(frozen=True, slots=True)
class SwapPlan:
    """What turns the live contents into the wanted ones. All by digest, in the groups' order."""

    load: tuple[Content, ...]
    keep: tuple[Digest, ...]
    drop: tuple[Digest, ...]

    def __str__(self) -> str:
        return f"{len(self.load)} to load, {len(self.keep)} to keep, {len(self.drop)} to drop"


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of a diff. `before` and `after` are digests; None where there is none."""

    label: str
    kind: str
    """added, removed, changed (the weights behind it) or renamed (`before_label` says from what)"""
    before: Digest | None = None
    after: Digest | None = None
    before_label: str | None = None


def plan_swap(live: Collection[Content], wanted: Collection[Content]) -> SwapPlan:
    """The plan from the contents that are live to those that are wanted."""
    have = {content.digest: content for content in live}
    want = {content.digest: content for content in wanted}
    return SwapPlan(
        load=tuple(content for digest, content in want.items() if digest not in have),
        keep=tuple(digest for digest in want if digest in have),
        drop=tuple(digest for digest in have if digest not in want),
    )


def diff(before: Sequence[Member], after: Sequence[Member]) -> list[Difference]:
    """What callers of the inference keys would notice, in the order of `after`, removals last."""
    old = {member.label: member for member in before}
    new = {member.label: member for member in after}
    gone = {label: member for label, member in old.items() if label not in new}
    changes: list[Difference] = []
    for label, member in new.items():
        digest = member.content.digest
        if label in old:
            was = old[label].content.digest
            if was != digest:
                changes.append(Difference(label, "changed", was, digest))
            continue
        same = next((o for o, m in gone.items() if m.content.digest == digest), None)
        if same is None:
            changes.append(Difference(label, "added", None, digest))
        else:
            del gone[same]
            changes.append(Difference(label, "renamed", digest, digest, before_label=same))
    removed = (Difference(label, "removed", m.content.digest) for label, m in gone.items())
    return [*changes, *removed]
