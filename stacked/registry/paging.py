"""Lists in pages that begin after a row, not at a number, so that added rows do not shift them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    RowMapping,
    Table,
    Text,
    literal,
    select,
    tuple_,
    type_coerce,
)

from stacked.errors import PageInvalid
from stacked.registry.records import Page, Query

# OCI documents 100; here the 500 members of the largest group fit into one page.
MAX_LIMIT = 1000
FIRST = Query()
T = TypeVar("T")


def build(record: type[T], row: RowMapping, **more: Any) -> T:
    """A record of what the row has; `more` are fields that stand elsewhere."""
    names = [field.name for field in fields(record) if field.name in row]  # type: ignore[arg-type]
    return record(**{name: row[name] for name in names}, **more)


def builder(record: type[T]) -> Callable[[RowMapping], T]:
    """`build`, of one kind of record."""
    return lambda row: build(record, row)


def filter_columns(names: Sequence[str], *tables: Table) -> dict[str, ColumnElement[Any]]:
    """The columns of these names, each of the first table that has it."""
    return {name: next(table.c[name] for table in tables if name in table.c) for name in names}


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """How one kind of thing is listed. The first of `sorts` is the default.

    `seq` is unique and grows; it orders rows with equal sort values.
    """

    name: str
    record: Callable[[RowMapping], T]
    source: FromClause
    columns: Sequence[ColumnElement[Any]]
    seq: ColumnElement[int]
    sorts: Mapping[str, ColumnElement[Any]]
    filters: Mapping[str, ColumnElement[Any]]

    def page(
        self,
        connection: Connection,
        query: Query,
        filters: Mapping[str, Any],
        where: Iterable[ColumnElement[bool]] = (),
        of: str | None = None,
    ) -> Page[T]:
        """One page, with the token of the next. Filters that are None do not filter.

        `where` are conditions of the caller besides its filters, `of` what they are about: part of
        what makes the list this list. Raises PageInvalid.
        """
        if not 1 <= query.limit <= MAX_LIMIT:
            raise PageInvalid(f"a limit of {query.limit} is not between 1 and {MAX_LIMIT}")
        sort, falls = self._order(query)
        wanted = {name: value for name, value in filters.items() if value is not None}
        mark = _mark(self.name, of, sort, falls, wanted)
        by = type_coerce(self.sorts[sort], Text)  # in its stored form, by which it is sorted
        place = tuple_(by, self.seq)
        statement = (
            select(*self.columns, by.label("_by"), self.seq.label("_seq"))
            .select_from(self.source)
            .where(*where, *(self.filters[name] == value for name, value in wanted.items()))
            .order_by(by.desc() if falls else by, self.seq.desc() if falls else self.seq)
            .limit(query.limit + 1)
        )
        if query.page is not None:
            value, seq = _read_token(query.page, mark)
            after = tuple_(literal(value, Text), literal(seq, BigInteger))
            statement = statement.where(place < after if falls else place > after)
        rows = connection.execute(statement).mappings().all()
        items = tuple(self.record(row) for row in rows[: query.limit])
        if len(rows) <= query.limit:
            return Page(items)
        last = rows[query.limit - 1]
        return Page(items, _token(mark, last["_by"], last["_seq"]))

    def _order(self, query: Query) -> tuple[str, bool]:
        """The sort and whether it is descending: times are by default, others are not."""
        sort = next(iter(self.sorts)) if query.sort is None else query.sort
        if sort not in self.sorts:
            raise PageInvalid(f"{self.name} cannot be sorted by {sort!r}: {', '.join(self.sorts)}")
        falls = sort.startswith("time_") if query.descending is None else query.descending
        return sort, falls


def _mark(name: str, of: str | None, sort: str, falls: bool, wanted: Mapping[str, Any]) -> str:
    """The identity of a list: it refuses tokens of other lists."""
    text = json.dumps([name, of, sort, falls, sorted((key, str(wanted[key])) for key in wanted)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _token(mark: str, by: str, seq: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([mark, by, seq]).encode()).decode().rstrip("=")


def _read_token(token: str, mark: str) -> tuple[str, int]:
    try:
        padded = token + "=" * (-len(token) % 4)
        found, by, seq = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        valid = found == mark and type(seq) is int and abs(seq) < 2**63
        by.encode()  # JSON can contain invalid text
    except (ValueError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise PageInvalid(
            "the page token is not one of this list with these filters and this order; "
            "begin without a token"
        )
    return by, seq
