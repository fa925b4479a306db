"""Records that are no longer needed: which content is still named, and what may be deleted.

One sweep is one transaction, so that what it names and what it drops are of one moment.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Table,
    create_engine,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError

from stacked.core import VERSIONED, Digest
from stacked.errors import RegistryUnusable
from stacked.registry import artifacts
from stacked.registry.database import Database
from stacked.registry.records import now
from stacked.registry.schema import (
    deployments,
    group_members,
    groups,
    histories,
    metadata,
    models,
    retry_tokens,
    version_sets,
    work_requests,
)
from stacked.registry.states import (
    UNFINISHED,
    DeploymentState,
    GroupState,
    ModelState,
    WorkStatus,
)

MayGo = Callable[[Digest, datetime], bool]
"""Whether a content has not been used since a time."""

_DROPPABLE = (GroupState.ACTIVE, GroupState.INACTIVE, GroupState.FAILED)
_REASON = "it fell out of the versions that are retained"


@dataclass(frozen=True, slots=True)
class Version:
    """A group as a version of a line: of its history, or of the tagged groups of its name.

    A group that is neither is a line of its own.
    """

    id: str
    line: str
    needed: str = ""
    """Why it stays whatever its age."""


class Sweep:
    """Queries and deletions within one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def versions(self) -> list[Version]:
        """Every group that is not deleted, the newest first."""
        needed = self._needed()
        history = groups.c.version_history_id
        rows = self._connection.execute(
            select(groups.c.id, history, groups.c.display_name, groups.c.tags, groups.c.state)
            .where(groups.c.state != GroupState.DELETED)
            .order_by(func.coalesce(groups.c.version, 0).desc(), groups.c.seq.desc())
        )
        return [
            Version(
                id,
                line=of or (f"name:{name}" if is_versioned(tags) else id),
                needed=needed.get(id) or ("" if state in _DROPPABLE else "it is being changed"),
            )
            for id, of, name, tags, state in rows
        ]

    def drop(self, group_id: str, may_go: MayGo) -> list[str]:
        """Delete a version, and the tagged models that only it named; their ids."""
        row = self._connection.execute(select(groups).where(groups.c.id == group_id)).one()
        only_here = self._connection.execute(
            select(models.c.id, models.c.digest, models.c.tags).where(
                models.c.id.in_(_members_of(groups.c.id == group_id)),
                models.c.state != ModelState.DELETED,
                models.c.kind.in_(("adapter", "model")),
                models.c.id.not_in(_members_of(_kept_group(), groups.c.id != group_id)),
            )
        ).all()
        gone = [
            id
            for id, digest, tags in only_here
            if is_versioned(tags) and may_go(digest, row.time_created)
        ]
        self._delete(groups, [group_id], GroupState.DELETED)
        self._delete(models, gone, ModelState.DELETED)
        return gone

    def named(self) -> frozenset[Digest]:
        """The contents of models that are not deleted or are in a group that is not."""
        return _named(self._connection)

    def released(self) -> frozenset[Digest]:
        """The contents of models that were deleted."""
        wanted = select(models.c.digest).where(models.c.state == ModelState.DELETED)
        return frozenset(self._connection.execute(wanted).scalars())

    def forget(
        self,
        records: datetime,
        work: datetime,
        tokens: datetime,
        *,
        most: int,
        needed: Collection[Digest] = (),
    ) -> list[str]:
        """Remove what was deleted or finished before these times, at most so many rows a table.

        Returns the table of every row. What another record refers to stays until that is gone, and
        models of `needed` contents stay.
        """
        finished = (WorkStatus.SUCCEEDED, WorkStatus.FAILED, WorkStatus.CANCELED)
        done = work_requests.c.status.in_(finished) & (work_requests.c.time_finished < work)
        found: list[str] = []
        for table, old in (
            (deployments, _deleted_before(deployments, records)),
            (work_requests, done),
            (groups, _deleted_before(groups, records)),
            (models, _deleted_before(models, records) & models.c.digest.not_in(needed)),
            (histories, _deleted_before(histories, records)),
            (version_sets, _deleted_before(version_sets, records)),
            (retry_tokens, retry_tokens.c.time_created < tokens),
        ):
            found += [table.name] * self._remove(table, old, most)
        return found

    def _remove(self, table: Table, old: ColumnElement[bool], most: int) -> int:
        unused = [
            table.c.id.not_in(select(column).where(column.is_not(None)))
            for column in _references(table)
        ]
        wanted = select(table.c.seq).where(old, *unused).order_by(table.c.seq).limit(most)
        rows = self._connection.execute(wanted).scalars().all()
        self._connection.execute(delete(table).where(table.c.seq.in_(rows)))
        return len(rows)

    def _needed(self) -> dict[str, str]:
        """The groups that deployments, histories and running work need, and why."""
        needed: dict[str, str] = {}
        for (latest,) in self._connection.execute(select(histories.c.latest_group_id)):
            needed[latest] = "the latest version of its history"
        unfinished = work_requests.c.status.in_(UNFINISHED[WorkStatus])
        for (resources,) in self._connection.execute(
            select(work_requests.c.resources).where(unfinished)
        ):
            needed |= {each.id: "a work request is at work on it" for each in resources}
        current = deployments.c.state != DeploymentState.DELETED
        for row in self._connection.execute(select(deployments).where(current)):
            for name in ("group", "declared"):
                needed[row.configuration.get(name)] = f"deployment {row.id} is configured with it"
            needed[row.previous_group_id] = f"the group before it, of deployment {row.id}"
            needed[row.group_id] = f"deployment {row.id} serves it"
        return needed

    def _delete(self, table: Table, ids: Sequence[str], state: GroupState | ModelState) -> None:
        gone = {"state": state, "reason": _REASON, "time_updated": now()}
        self._connection.execute(update(table).where(table.c.id.in_(ids)).values(gone))
        for id in ids:
            artifacts.drop(self._connection, id)


class Retention:
    """Deletes from one registry what is no longer needed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def sweep(self, *, dry_run: bool = False) -> Iterator[Sweep]:
        """One transaction; with `dry_run` nothing of it stays."""
        with self._database.write() as connection:
            yield Sweep(connection)
            transaction = connection.get_transaction()
            if dry_run and transaction is not None:
                transaction.rollback()

    def named_by_others(self) -> frozenset[Digest]:
        """What the other registries of the same database name."""
        with self._database.read() as connection:
            others = self._database.registries(connection)
            return frozenset().union(*(_named(connection, schema) for schema in others))


def named_in(path: Path) -> frozenset[Digest]:
    """What a registry that another process may have open names. Raises RegistryUnusable."""
    engine = create_engine(f"sqlite:///file:{path}?mode=ro&uri=true")
    try:
        with engine.connect() as connection:
            return _named(connection)
    except DBAPIError as error:
        raise RegistryUnusable(f"the registry {path} cannot be read: {error.orig}") from error
    finally:
        engine.dispose()


def is_versioned(tags: Mapping[str, Any]) -> bool:
    """Whether a record comes and goes with versions; see `stacked.core.VERSIONED`."""
    return VERSIONED.items() <= (tags.get("freeform") or {}).items()


def _named(connection: Connection, schema: str | None = None) -> frozenset[Digest]:
    needed = or_(models.c.state != ModelState.DELETED, models.c.id.in_(_members_of(_kept_group())))
    wanted = select(models.c.digest).where(needed).distinct()
    place = {"schema_translate_map": {None: schema}} if schema else {}
    return frozenset(connection.execute(wanted, execution_options=place).scalars())


def _kept_group() -> ColumnElement[bool]:
    return groups.c.state != GroupState.DELETED


def _members_of(*which: ColumnElement[bool]) -> CompoundSelect[Any]:
    """The ids of the models of some groups, their bases too."""
    joined = group_members.join(groups, groups.c.id == group_members.c.group_id)
    members = select(group_members.c.model_id).select_from(joined).where(*which)
    bases = select(groups.c.base_model_id).where(groups.c.base_model_id.is_not(None), *which)
    return members.union(bases)


def _references(table: Table) -> list[ColumnElement[str]]:
    """The columns that keep a row; the database deletes or empties the others with it."""
    return [
        key.parent
        for other in metadata.tables.values()
        for key in other.foreign_keys
        if key.ondelete is None and key.references(table)
    ]


def _deleted_before(table: Table, time: datetime) -> ColumnElement[bool]:
    return (table.c.state == "DELETED") & (table.c.time_updated < time)
