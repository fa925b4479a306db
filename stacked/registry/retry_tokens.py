"""Retry tokens: a call that is repeated gets the same answer.

A row exists from the beginning of its call; without an answer, the call was cut off.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update

from stacked.registry.database import Database
from stacked.registry.schema import retry_tokens

# As in OCI.
LIFETIME = timedelta(hours=24)
# So that a caller with ever new tokens does not fill the disk.
MAX_TOKENS = 10_000


@dataclass(frozen=True, slots=True)
class RetryToken:
    """Whose token it is, and what for."""

    principal: str
    operation: str
    token: str


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer as it was given."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class FirstCall:
    """The first call with a token; `payload` is a digest. Without `answer` it was cut off."""

    payload: str
    answer: StoredAnswer | None


class RetryTokenRepository:
    """The first call with every token. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, token: RetryToken, payload: str, now: datetime) -> FirstCall | None:
        """The first call with a token, or None: then it is this one, which is recorded.

        Calls older than a day are deleted, and so are the oldest of more than 10,000.
        """
        with self._database.write() as connection:
            old = delete(retry_tokens).where(retry_tokens.c.time_created <= now - LIFETIME)
            connection.execute(old)
            row = connection.execute(select(retry_tokens).where(_is(token))).mappings().first()
            if row is None:
                _make_room(connection)
                given = {**asdict(token), "payload": payload, "time_created": now}
                connection.execute(insert(retry_tokens).values(headers={}, body=b"", **given))
                return None
            answer = None
            if row["status"] is not None:
                answer = StoredAnswer(row["status"], row["headers"], zlib.decompress(row["body"]))
            return FirstCall(row["payload"], answer)

    def finish(self, token: RetryToken, payload: str, answer: StoredAnswer) -> None:
        """Store the answer of the call that has begun."""
        columns = {
            "payload": payload,
            "status": answer.status,
            "headers": dict(answer.headers),
            "body": zlib.compress(answer.body),
        }
        with self._database.write() as connection:
            connection.execute(update(retry_tokens).where(_is(token)).values(columns))

    def forget(self, token: RetryToken) -> None:
        """The call had no effect: its token may be used again."""
        with self._database.write() as connection:
            connection.execute(delete(retry_tokens).where(_is(token)))


def _make_room(connection: Connection) -> None:
    """Delete the oldest if there are too many."""
    count = connection.execute(select(func.count()).select_from(retry_tokens)).scalar_one()
    if count >= MAX_TOKENS:
        oldest = (
            select(retry_tokens.c.seq).order_by(retry_tokens.c.seq).limit(count - MAX_TOKENS + 1)
        )
        connection.execute(delete(retry_tokens).where(retry_tokens.c.seq.in_(oldest)))


def _is(token: RetryToken) -> ColumnElement[bool]:
    return and_(*(retry_tokens.c[name] == value for name, value in asdict(token).items()))
