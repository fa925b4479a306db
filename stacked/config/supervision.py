"""What the server does when its engine dies or no longer answers."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from stacked.config.fields import Duration, Frozen


class SupervisionConfig(Frozen):
    """How long an engine may be silent, and how often it is started again."""

    # A step of 2,048 tokens of a base of 8B parameters takes a minute on 16 cores of a CPU.
    hang: Duration = Field(default=timedelta(minutes=5), ge=timedelta(seconds=5))
    """An engine that makes no step for this long while requests wait is ended."""
    backoff: Duration = timedelta(seconds=1)
    """How long the server waits before it starts an engine again; doubled at every death."""
    longest_backoff: Duration = timedelta(minutes=1)
    deaths: int = Field(default=5, ge=1)
    """After this many deaths in a row the server ends, for its platform to start it again."""
    window: Duration = Field(default=timedelta(minutes=10), ge=timedelta(seconds=1))
    """An engine that served for longer than this before its death begins a new row."""
    quarantine_after: int = Field(default=3, ge=2)
    """At this many deaths in a row, the one adapter that had requests at each of them is no longer
    served; at one fewer, but at least two, if nothing else had any."""
