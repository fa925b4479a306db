"""The server's side of what groups try: how much of an engine, a disk and a memory it may take."""

from __future__ import annotations

from pydantic import Field

from stacked.config.evaluations import GatesConfig
from stacked.config.fields import Frozen


class ShadowLimits(Frozen):
    """How much copies may take. Whatever the limits are, they make room for every request."""

    running: int = Field(default=8, ge=1, le=1000)
    """How many run at a time: together, once so many wait or the first has waited for 10 s."""
    waiting: int = Field(default=32, ge=1, le=1000)
    """How many wait for that; more are dropped."""
    seconds: float = Field(default=120, gt=0, le=3600)
    """How long the answer of one may take."""
    samples: int = Field(default=0, ge=0, le=1000)
    """How many comparisons are kept with their texts, in memory, for administrators; 0: none."""


class ExperimentsConfig(Frozen):
    gates: GatesConfig = GatesConfig()
    shadow: ShadowLimits = ShadowLimits()
