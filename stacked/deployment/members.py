"""The states of a deployment's members: as recorded, as what serves shows them, and in a fleet as
all of its replicas do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stacked.live import Live
from stacked.registry import DeployedMember, MemberState, Page
from stacked.registry.fleets import Seen

Differing = Mapping[str, tuple[MemberState, str]]
"""The models that not every replica serves: id -> state, and which replica does not, and why."""


def states_now(page: Page[DeployedMember], live: Live[Any]) -> Page[DeployedMember]:
    """Recorded members, those FAILED that were removed alone or are quarantined."""
    gone: dict[tuple[str, str | None], str] = {
        (member.model_id, member.key): live.quarantined.get(
            member, f"it was removed by itself; POST /models/{member.model_id} serves it again"
        )
        for member in live.removed
    }
    reasons = ((row, gone.get((row.model_id, row.key))) for row in page.items)
    shown = (
        row if why is None else replace(row, state=MemberState.FAILED, reason=why)
        for row, why in reasons
    )
    return replace(page, items=tuple(shown))


def states_of_all(page: Page[DeployedMember], differing: Differing) -> Page[DeployedMember]:
    """Recorded members, with the states of those that not every replica serves."""
    found = ((row, differing.get(row.model_id)) for row in page.items)
    shown = (replace(row, state=now[0], reason=now[1]) if now else row for row, now in found)
    return replace(page, items=tuple(shown))


def differing(seen: Seen, lease: float) -> Differing:
    """FAILED is what no replica serves that does not lack its lease."""
    fleet, members = seen.shared.fleet, seen.shared.members
    serving = {
        id: each.name
        for id, each in members.items()
        if fleet and each.generation == fleet.generation and seen.ago[id] <= lease
    }
    lacking: dict[str, dict[str, list[str]]] = {}
    for id, name in sorted(serving.items(), key=lambda each: each[1]):
        for model_id, why in seen.lacking[id].items():
            lacking.setdefault(model_id, {}).setdefault(why, []).append(name)
    return {model_id: _state(whys, len(serving)) for model_id, whys in lacking.items()}


def _state(whys: Mapping[str, list[str]], replicas: int) -> tuple[MemberState, str]:
    state = MemberState.INCONSISTENT
    if sum(map(len, whys.values())) == replicas:
        state = MemberState.FAILED
    return state, "; ".join(f"replica {', '.join(names)}: {why}" for why, names in whys.items())
