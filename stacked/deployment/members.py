"""The states of a deployment's members: as recorded, and as what serves shows them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stacked.live import Live
from stacked.registry import DeployedMember, MemberState, Page


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
