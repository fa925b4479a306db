"""Lists in pages that stay true while rows are added: a page begins after a row, not at a number.

It must not know what is listed.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    RowMapping,
    Text,
    select,
    tuple_,
    type_coerce,
)

from stacked.errors import PageInvalid
from stacked.registry.records import Query

MAX_LIMIT = 1000
FIRST = Query()


@dataclass(frozen=True, slots=True)
class Listing:
    """How one kind of thing is listed. The first of `sorts` is the default.

    `seq` is unique and grows; it orders rows that are equal in what sorts them.
    """

    name: str
    source: FromClause
    columns: Sequence[ColumnElement[Any]]
    seq: ColumnElement[int]
    sorts: Mapping[str, ColumnElement[Any]]
    filters: Mapping[str, ColumnElement[Any]]

    def order(self, query: Query) -> tuple[str, bool]:
        """The sort and whether it runs down: times by default do, the rest does not."""
        sort = next(iter(self.sorts)) if query.sort is None else query.sort
        if sort not in self.sorts:
            raise PageInvalid(f"{self.name} cannot be sorted by {sort!r}: {', '.join(self.sorts)}")
        falls = sort.startswith("time_") if query.descending is None else query.descending
        return sort, falls


def read_page(
    connection: Connection,
    listing: Listing,
    query: Query,
    filters: Mapping[str, Any],
    where: Iterable[ColumnElement[bool]] = (),
    of: str | None = None,
) -> tuple[Sequence[RowMapping], str | None]:
    """The rows of one page, and the token of the next. Filters that are None do not filter.

    `where` are conditions of the caller beside its filters, `of` what they are about: part of what
    makes the list this list. Raises PageInvalid.
    """
    if not 1 <= query.limit <= MAX_LIMIT:
        raise PageInvalid(f"a limit of {query.limit} is not between 1 and {MAX_LIMIT}")
    sort, falls = listing.order(query)
    wanted = {name: value for name, value in filters.items() if value is not None}
    mark = _mark(listing.name, of, sort, falls, wanted)
    by = type_coerce(listing.sorts[sort], Text)  # as it is stored, which is how it sorts
    place = tuple_(by, listing.seq)
    statement = (
        select(*listing.columns, by.label("_by"), listing.seq.label("_seq"))
        .select_from(listing.source)
        .where(*where, *(listing.filters[name] == value for name, value in wanted.items()))
        .order_by(by.desc() if falls else by, listing.seq.desc() if falls else listing.seq)
        .limit(query.limit + 1)
    )
    if query.page is not None:
        after = tuple_(*_read_token(query.page, mark))
        statement = statement.where(place < after if falls else place > after)
    rows = connection.execute(statement).mappings().all()
    if len(rows) <= query.limit:
        return rows, None
    rows = rows[: query.limit]
    return rows, _token(mark, rows[-1]["_by"], rows[-1]["_seq"])


def _mark(name: str, of: str | None, sort: str, falls: bool, wanted: Mapping[str, Any]) -> str:
    """What makes two lists the same list: a token of one is refused by the other."""
    text = json.dumps([name, of, sort, falls, sorted((key, str(wanted[key])) for key in wanted)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _token(mark: str, by: str, seq: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([mark, by, seq]).encode()).decode().rstrip("=")


def _read_token(token: str, mark: str) -> tuple[str, int]:
    try:
        padded = token + "=" * (-len(token) % 4)
        found, by, seq = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        valid = found == mark and type(seq) is int and abs(seq) < 2**63
        by.encode()  # JSON can say text that is none
    except (ValueError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise PageInvalid(
            "the page token is not one of this list with these filters and this order; "
            "begin without a token"
        )
    return by, seq
