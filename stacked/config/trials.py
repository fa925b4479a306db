"""The server's side of what groups try: how much of an engine, a disk and a memory it may take."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from stacked.config.evaluations import GatesConfig
from stacked.config.fields import Duration, Frozen


class ShadowLimits(Frozen):
    """How much copies may take. Whatever the limits are, they make room for every request."""

    running: int = Field(default=8, ge=1, le=1000)
    """How many run at a time: together, once so many wait or the first has waited for 10 s. At most
    an eighth of the requests that the engine runs at once."""
    waiting: int = Field(default=32, ge=1, le=1000)
    """How many wait for that; more are dropped."""
    seconds: float = Field(default=120, gt=0, le=3600)
    """How long the answer of one may take."""
    samples: int = Field(default=0, ge=0, le=1000)
    """How many comparisons are kept with their texts, in memory, for administrators; 0: none."""


class ExperimentsConfig(Frozen):
    """What is stored of experiments, on disk: about 80 MB for 1,000,000 answers; gates; shadow."""

    feedback: Duration = Field(default=timedelta(days=7), ge=timedelta(hours=1))
    """How long after an answer feedback for it is accepted."""
    results: Duration = Field(default=timedelta(days=90), ge=timedelta(hours=1))
    """How long the results of a phase are stored after its last answer."""
    answers: int = Field(default=2_000_000, ge=1000)
    """For how many answers, of all experiments, feedback is accepted; the oldest go."""
    units: int = Field(default=200_000, ge=100)
    """Units of one phase; what is beyond is counted, and no part of the result."""
    metrics: int = Field(default=20, ge=1, le=100)
    """Different metrics of the feedback of one phase."""
    gates: GatesConfig = GatesConfig()
    shadow: ShadowLimits = ShadowLimits()
    lower_is_better: tuple[str, ...] = ()
    """Metrics of feedback of which an arm is better that has less."""
