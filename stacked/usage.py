"""Requests and tokens by credential and key, as `flushing.py` counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from stacked.flushing import Flushing
from stacked.registry.usage import Counts, UsageRepository

_HOUR = timedelta(hours=1)

Pending = dict[tuple[str, str], Counts]


class Usage(Flushing[Pending]):
    """The counts of this process. `begin`, use, `await close()`; all on one event loop."""

    def __init__(self) -> None:
        super().__init__("usage")
        self.pending: Pending = {}
        """What is not written yet, by credential and key; no more, however long that fails."""
        self._records: UsageRepository | None = None
        self._kept = _HOUR
        self._tidied = datetime.min.replace(tzinfo=UTC)

    def begin(self, records: UsageRepository, kept: timedelta) -> None:
        """Write the counts to these records from now on, where they stay so long."""
        self._records, self._kept = records, kept
        self._begin()

    def add(self, credential: str, key: str, counts: Counts) -> None:
        """`key` is empty for a request that found no model."""
        before = self.pending.get((credential, key))
        self.pending[credential, key] = counts if before is None else before.plus(counts)

    def _take(self) -> Pending | None:
        taken, self.pending = self.pending, {}
        return taken or None

    def _put_back(self, taken: Pending) -> None:
        for (credential, key), each in taken.items():
            self.add(credential, key, each)

    def _write(self, taken: Pending) -> None:
        assert self._records is not None
        now = datetime.now(UTC)
        if abs(now - self._tidied) >= _HOUR:  # a clock may be set back
            self._records.forget(now - self._kept)
            self._tidied = now
        self._records.add(taken, now)  # last: it is not done twice
