"""What a change of a group means for its experiments, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stacked.config import Design, ExperimentConfig


def changes(
    before: Design, after: Design, old: Mapping[str, str], new: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Key, kind of change and detail; `old` and `new`: the digests behind the groups' keys."""
    was = {one.key: one for one in before.experiments}
    now = {one.key: one for one in after.experiments}
    for key, one in now.items():
        for kind, detail in _of_one(was.get(key), one, old, new):
            yield key, kind, detail
    for key in was.keys() - now.keys():
        yield key, "removed", f"experiment of {_arms(was[key])}"


def _of_one(
    was: ExperimentConfig | None,
    now: ExperimentConfig,
    old: Mapping[str, str],
    new: Mapping[str, str],
) -> Iterator[tuple[str, str]]:
    if was is None:
        yield "added", f"experiment of {_arms(now)}"
        return
    if (was.unit, was.salt) != (now.unit, now.salt):
        yield "assigned", f"all units anew, by {now.unit}"
    keys, there = ({arm.key for arm in each.arms} for each in (was, now))
    if keys != there:
        yield "arms", f"{_arms(was)} → {_arms(now)}"
    elif _weights(was) != _weights(now):
        yield "weights", f"{was} → {now}"
    for key in sorted(keys & there):
        if old.get(key) != new.get(key):
            yield "phase", f"a new one: arm {key} has other content"


def _weights(one: ExperimentConfig) -> dict[str, float]:
    return {arm.key: arm.weight for arm in one.arms}


def _arms(one: ExperimentConfig) -> str:
    return ", ".join(f"{arm.key} {arm.weight:g}" for arm in one.arms)
