"""Retry tokens: a call that was made once is answered the same when it is made again.

A row is there from the moment its call begins; without an answer, the call was cut off. It must
not know transactions; each function works in the one it is given.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update

from stacked.registry.schema import retry_tokens

KEPT = timedelta(hours=24)
MOST = 10_000


@dataclass(frozen=True, slots=True)
class RetryToken:
    """Whose token it is, and what for."""

    principal: str
    operation: str
    token: str


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer as it was given."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """The first call with a token. `payload` tells what was sent; `answer` None: it was cut off."""

    payload: str
    answer: Kept | None


def begin(connection: Connection, token: RetryToken, payload: str, now: datetime) -> Call | None:
    """The call that was made with this token; None: there was none, and this is the one now."""
    connection.execute(delete(retry_tokens).where(retry_tokens.c.time_created <= now - KEPT))
    row = connection.execute(select(retry_tokens).where(_is(token))).mappings().first()
    if row is not None:
        answer = None
        if row["status"] is not None:
            answer = Kept(row["status"], row["headers"], zlib.decompress(row["body"]))
        return Call(row["payload"], answer)
    _make_room(connection)
    connection.execute(
        insert(retry_tokens).values(
            principal=token.principal,
            operation=token.operation,
            token=token.token,
            payload=payload,
            headers={},
            body=b"",
            time_created=now,
        )
    )
    return None


def finish(connection: Connection, token: RetryToken, payload: str, answer: Kept) -> None:
    """Keep the answer of the call that has begun."""
    connection.execute(
        update(retry_tokens)
        .where(_is(token))
        .values(
            payload=payload,
            status=answer.status,
            headers=dict(answer.headers),
            body=zlib.compress(answer.body),
        )
    )


def forget(connection: Connection, token: RetryToken) -> None:
    """The call did nothing: another one may be made with its token."""
    connection.execute(delete(retry_tokens).where(_is(token)))


def _make_room(connection: Connection) -> None:
    """Forget the oldest where there are too many."""
    count = connection.execute(select(func.count()).select_from(retry_tokens)).scalar_one()
    if count >= MOST:
        oldest = select(retry_tokens.c.seq).order_by(retry_tokens.c.seq).limit(count - MOST + 1)
        connection.execute(delete(retry_tokens).where(retry_tokens.c.seq.in_(oldest)))


def _is(token: RetryToken) -> ColumnElement[bool]:
    return and_(
        retry_tokens.c.principal == token.principal,
        retry_tokens.c.operation == token.operation,
        retry_tokens.c.token == token.token,
    )
