"""Names under which things are numbered: version histories of groups, version sets of models.

Both are records with a name that is unique among those not deleted. A group or a model joins at
most one of them, as its next version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Table, literal, select, update

from stacked.errors import RecordAbsent, RecordConflict
from stacked.registry.records import ModelVersionSet, VersionHistory, now
from stacked.registry.repository import DESCRIBED, Editable, Rows, differing
from stacked.registry.schema import groups, histories, models, version_sets
from stacked.registry.states import HistoryState

V = TypeVar("V", bound=VersionHistory | ModelVersionSet)


class Versions(Rows[V], Generic[V]):
    """Records that number the rows of another table.

    `items` is that table, whose column `link` names the record that a row has joined; `item` is
    what messages call one of its rows.
    """

    def __init__(
        self, record: type[V], noun: str, table: Table, items: Table, link: str, item: str
    ) -> None:
        super().__init__(record, noun, table)
        # As OCI answers: a deleted history is in a wrong state, a deleted set is absent.
        self.closed = RecordConflict if items is groups else RecordAbsent
        self.items = items
        self.link = items.c[link]
        self.item = item

    def create(self, connection: Connection, record: V) -> V:
        """Insert it, or return an equal one of the same name. Raises RecordConflict."""
        stored = self.find(connection, record.id)
        if stored is None:
            self.check_name(connection, record.display_name, record.id)
            return self.insert(connection, record)
        if differing(stored, record, ("display_name", "compartment_id", "project_id")):
            raise RecordConflict(f"{self.noun} {record.id} is there under another name")
        return stored

    def check_name(self, connection: Connection, name: str, id: str) -> None:
        """Raise RecordConflict if another record has the name."""
        taken = connection.execute(
            select(self.table.c.id).where(
                self.table.c.display_name == name,
                self.table.c.state != HistoryState.DELETED,
                self.table.c.id != id,
            )
        ).scalar()
        if taken is not None:
            raise RecordConflict(f"a {self.noun} named {name!r} is there already: {taken}")

    def join(self, connection: Connection, id: str, item_id: str) -> None:
        """Make a row of the other table the next version, unless it is one already."""
        item = connection.execute(
            select(self.items.c.state, self.link).where(self.items.c.id == item_id)
        ).first()
        if item is None:
            raise RecordAbsent(f"there is no {self.item} {item_id}")
        state, joined = item
        if state.value == "DELETED":
            raise RecordAbsent(f"{self.item} {item_id} is DELETED; only its record is left")
        if joined == id:
            return
        if joined is not None:
            raise RecordConflict(f"{self.item} {item_id} is of {self.noun} {joined} already")
        row = self.row(connection, id)
        if row["state"] is not HistoryState.ACTIVE:
            raise self.closed(
                f"{self.noun} {id} is {row['state'].value}; only an ACTIVE one takes a {self.item}"
            )
        version = row["last_version"] + 1
        connection.execute(
            update(self.items)
            .where(self.items.c.id == item_id)
            .values({self.link.name: id, "version": version, "time_updated": now()})
        )
        joins = update(self.table).where(self.table.c.id == id)
        connection.execute(joins.values(last_version=version))
        if "latest_group_id" in self.table.c:
            self.change(connection, id, {"latest_group_id": item_id})

    def take(self, connection: Connection, item_id: str, changes: dict[str, Any]) -> None:
        """Join the one that changes of a row of the other table name, if they do."""
        id = changes.pop(self.link.name, None)
        if id is not None:
            self.join(connection, id, item_id)

    def forget(self, connection: Connection, id: str, item_id: str) -> None:
        """A version is deleted: if it was the latest, the highest remaining one now is."""
        if self.row(connection, id)["latest_group_id"] == item_id:
            left = [each for each in self.versions(connection, id) if each != item_id]
            self.change(connection, id, {"latest_group_id": left[-1] if left else None})

    def versions(self, connection: Connection, id: str) -> Sequence[str]:
        """The ids of its versions that are not deleted, the lowest first."""
        wanted = select(self.items.c.id).where(self.link == id, self.items.c.state != "DELETED")
        return connection.execute(wanted.order_by(self.items.c.version)).scalars().all()


HISTORIES = Versions(
    VersionHistory, "version history", histories, groups, "version_history_id", "model group"
)
SETS = Versions(
    ModelVersionSet, "model version set", version_sets, models, "version_set_id", "model"
)


class HistoryRepository(Editable[VersionHistory, VersionHistory]):
    """Lines of groups under one name, each with its latest group.

    A latest group that is in no history yet joins this one. Changing raises RecordConflict for a
    name that is taken, or a group of another history.
    """

    _rows = HISTORIES
    _listing = HISTORIES.listing(VersionHistory)
    _changes = (*DESCRIBED, "latest_group_id")

    def create(self, history: VersionHistory) -> VersionHistory:
        """Idempotent; a latest group becomes its first version.

        Raises RecordConflict for a name that is taken, or a group of another history.
        """
        with self._database.write() as connection:
            HISTORIES.create(connection, replace(history, latest_group_id=None))
            if history.latest_group_id is not None:
                HISTORIES.join(connection, history.id, history.latest_group_id)
            return HISTORIES.get(connection, history.id)

    def _prepare(
        self, connection: Connection, stored: VersionHistory, changes: dict[str, Any]
    ) -> None:
        if "display_name" in changes:
            HISTORIES.check_name(connection, changes["display_name"], stored.id)
        if "latest_group_id" in changes:
            HISTORIES.join(connection, stored.id, changes["latest_group_id"])


class VersionSetRepository(Editable[ModelVersionSet, ModelVersionSet]):
    """Models under one name, each the next version of it. All are of category USER."""

    _rows = SETS
    _listing = SETS.listing(ModelVersionSet, category=literal("USER"))
    _changes = ("description", "tags", "compartment_id")  # not the name: models are found by it

    def create(self, record: ModelVersionSet) -> ModelVersionSet:
        """Idempotent. Raises RecordConflict for a name that is taken."""
        with self._database.write() as connection:
            return SETS.create(connection, record)

    def delete(self, id: str, expect: ModelVersionSet | None = None) -> ModelVersionSet:
        """Mark it deleted. Raises RecordConflict while it has models that are not deleted."""
        with self._database.write() as connection:
            SETS.current(connection, id, expect)
            left = SETS.versions(connection, id)
            if left:
                more = f" and {len(left) - 1} more" if len(left) > 1 else ""
                raise RecordConflict(
                    f"model {left[0]}{more} of model version set {id} is not deleted; delete its "
                    "models, or have them deleted with isDeleteRelatedModels=true"
                )
            SETS.move(connection, id, HistoryState.DELETING)
            return SETS.move(connection, id, HistoryState.DELETED)

    def models_of(self, id: str) -> Sequence[str]:
        """The ids of its models that are not deleted, by version."""
        with self._database.read() as connection:
            return SETS.versions(connection, id)
