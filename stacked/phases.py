"""The phases of a LIVE update: how long each takes, and who follows them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from stacked import tracing
from stacked.core import Digest, short
from stacked.errors import StackedError, UpdateFailed
from stacked.loader import Count, is_the_engines
from stacked.steps import Phase


class Journal(Protocol):
    """Follows an update, and makes it durable."""

    def step(self, step: Phase, done: float, detail: str) -> None:
        """See `stacked.steps.Progress`."""

    def refused(self, adapter: Digest, error: StackedError) -> None:
        """This adapter is why the update fails."""

    async def commit(self, generation: int) -> None:
        """Make the new group what a restart serves."""


class Clock:
    """The phase of an update, and since when; reported to its journal and in spans."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.seconds: dict[Phase, float] = {}
        self._phase = Phase.PLAN
        self._since: float | None = None
        self._span = tracing.of_work("stacked.update", time.monotonic())

    def enter(self, phase: Phase, text: str) -> None:
        now = time.monotonic()
        if self._since is not None:
            self.seconds[self._phase] = now - self._since
            self._trace(self._since, now)
        self._phase, self._since = phase, now
        self.tell(0.0, text)

    def _trace(self, since: float, until: float, error: str = "") -> None:
        if self._span is not None:
            self._span.part(f"stacked.update.{self._phase.value}", since, until, error)

    def stop(self, error: str = "") -> None:
        """The update is over; `error`: the code of why it failed in this phase."""
        if error and self._since is not None:
            self._trace(self._since, time.monotonic(), error)
        if self._span is not None:
            self._span.end({}, error)

    def tell(self, done: float, text: str) -> None:
        self.journal.step(self._phase, done, text)

    def counts(self, what: str, total: int) -> Count:
        return lambda count: self.tell(count / total, f"{what} {count} of {total}")

    def refuse(self, failed: Mapping[Digest, StackedError], how: str) -> None:
        """Raise if adapters have failed, each with its reason, or the engine has."""
        for digest, error in failed.items():
            self.journal.refused(digest, error)
        for error in failed.values():
            if is_the_engines(error):
                raise error
        if failed:
            reasons = "; ".join(f"{short(digest)}: {error}" for digest, error in failed.items())
            raise UpdateFailed(f"{len(failed)} models {how}: {reasons}")
