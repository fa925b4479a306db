"""A LIVE update as people ask for it: what is refused before it begins, and what is told of it.

Between a group's id and `Live.update`. It must not know HTTP, records of deployments, or how a
group is made live.
"""

from __future__ import annotations

from stacked import metrics
from stacked.core import ModelGroup
from stacked.deployment.journal import UpdateJournal
from stacked.deployment.serving import Serving
from stacked.errors import RankRefused, UpdateFailed


async def update_live(serving: Serving, wanted: ModelGroup, journal: UpdateJournal) -> str:
    """Replace the served group by this one under traffic; a sentence about what was done.

    Raises StackedError, and the old group serves on.
    """
    try:
        _check_ranks(serving, wanted, journal)
        report = await serving.live.update(wanted.base, wanted.members, journal)
    except BaseException:
        metrics.swap_ended("failed", {})
        raise
    metrics.swap_ended("succeeded", {p.value: took for p, took in report.seconds.items()})
    serving.count()
    return (
        f"generation {report.generation}: {len(report.loaded)} loaded, "
        f"{len(report.dropped)} dropped, {report.ended} requests ended at the deadline"
    )


def _check_ranks(serving: Serving, wanted: ModelGroup, journal: UpdateJournal) -> None:
    """An engine's rank is set when it starts; what is above it is refused, model by model."""
    most = serving.plan.max_rank
    above = [member for member in wanted if member.adapter.rank > most]
    for member in above:
        error = RankRefused(
            f"{member.label} has rank {member.adapter.rank}, and this engine takes {most}; "
            "set engine.max_lora_rank and restart, or update with updateType ZDT"
        )
        journal.refused(member.adapter.digest, error)
    if above:
        raise UpdateFailed(f"{len(above)} models have a rank above {most}, which is not LIVE")
