"""Requests and tokens by credential, inference key and hour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from sqlalchemy import Connection, delete, select

from stacked.registry.database import Database
from stacked.registry.schema import total, upsert, usage

# About 100 MB; the oldest hours beyond these are deleted.
MAX_ROWS = 500_000

By = Literal["credential", "key"]


class Counts(NamedTuple):
    """What is counted. `errors` are requests that were refused or failed."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    def plus(self, other: Counts) -> Counts:
        return Counts(
            self.requests + other.requests,
            self.errors + other.errors,
            self.prompt_tokens + other.prompt_tokens,
            self.generated_tokens + other.generated_tokens,
        )


@dataclass(frozen=True, slots=True)
class Used:
    """What one credential used under one key; None where it is the sum over all of them."""

    credential: str | None
    key: str | None
    counts: Counts


class UsageRepository:
    """The counts of every hour. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, counts: Mapping[tuple[str, str], Counts], now: datetime) -> None:
        """Add to the counts of this hour: (credential, key) -> counts."""
        hour = hour_of(now)
        rows = [
            {"hour": hour, "credential": credential, "key": key, **each._asdict()}
            for (credential, key), each in counts.items()
        ]
        if not rows:
            return
        with self._database.write() as connection:
            keys = ("hour", "credential", "key")
            connection.execute(upsert(connection, usage, keys, add=Counts._fields), rows)

    def forget(self, before: datetime) -> None:
        """Delete what is older, and the oldest hours beyond `MAX_ROWS`."""
        with self._database.write() as connection:
            connection.execute(delete(usage).where(usage.c.hour < before))
            oldest = _oldest_kept(connection)
            if oldest is not None:
                connection.execute(delete(usage).where(usage.c.hour < oldest))

    def totals(self, since: datetime, by: By | None = None) -> list[Used]:
        """The sums of the hours from `since` on, the most requests first.

        `by`: over all keys of each credential, or all credentials of each key.
        """
        names = (by,) if by else ("credential", "key")
        columns = [usage.c[name] for name in names]
        sums = [total(usage.c[name]).label(name) for name in Counts._fields]
        query = (
            select(*columns, *sums)
            .where(usage.c.hour >= since)
            .group_by(*columns)
            .order_by(total(usage.c.requests).desc(), *columns)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            Used(row.get("credential"), row.get("key"), Counts(*(row[n] for n in Counts._fields)))
            for row in rows
        ]


def hour_of(time: datetime) -> datetime:
    """The beginning of its hour."""
    return time.replace(minute=0, second=0, microsecond=0)


def _oldest_kept(connection: Connection) -> datetime | None:
    """The hour of the newest row that is one too many, and so of what may stay; None: all may."""
    found = connection.execute(
        select(usage.c.hour).order_by(usage.c.hour.desc(), usage.c.seq).offset(MAX_ROWS).limit(1)
    ).scalar_one_or_none()
    return None if found is None else found + timedelta(hours=1)
