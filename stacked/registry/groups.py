"""Records of model groups and their immutable members."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select

from stacked.errors import RecordAbsent, RecordConflict
from stacked.registry import artifacts
from stacked.registry.composition import HOMOGENEOUS, check_composition
from stacked.registry.models import MODELS
from stacked.registry.paging import FIRST, Listing, build, filter_columns
from stacked.registry.records import (
    Artifact,
    GroupMember,
    GroupModel,
    GroupRecord,
    GroupSummary,
    Model,
    Page,
    Query,
)
from stacked.registry.repository import DESCRIBED, FILTERS, SORTS, Editable, Rows, differing
from stacked.registry.schema import deployments, group_members, groups, models
from stacked.registry.schema import histories as lines
from stacked.registry.states import DeploymentState, GroupState, ModelState
from stacked.registry.versions import HISTORIES

_IMMUTABLE = (
    "kind",
    "base_model_id",
    "members",
    "custom_metadata",
    "create_type",
    "source_group_id",
)

_MEMBER = tuple(group_members.c[field.name] for field in fields(GroupMember))


class _GroupRows(Rows[GroupRecord]):
    def _build(self, connection: Connection, row: RowMapping) -> GroupRecord:
        wanted = select(*_MEMBER).where(group_members.c.group_id == row["id"])
        members = connection.execute(wanted.order_by(group_members.c.position))
        return build(GroupRecord, row, members=tuple(GroupMember(*member) for member in members))


GROUPS = _GroupRows(
    GroupRecord,
    "model group",
    groups,
    groups.outerjoin(lines, lines.c.id == groups.c.version_history_id),
    lines.c.display_name.label("version_history_name"),
)


_MODELS = Listing(
    name="models of a group",
    record=lambda row: GroupModel(member=build(GroupMember, row), model=build(Model, row)),
    source=group_members.join(models, models.c.id == group_members.c.model_id),
    columns=(*models.c, *_MEMBER),
    seq=group_members.c.seq,
    sorts={name: models.c[name] for name in SORTS},
    filters=filter_columns((*FILTERS, "key"), models, group_members),
)


class GroupRepository(Editable[GroupRecord, GroupSummary]):
    """Groups with their members. Of a group, names, tags and state change, and nothing else.

    A group may join a version history; RecordConflict if it is of another one already.
    """

    _rows = GROUPS
    _listing = GROUPS.listing(
        GroupSummary,
        (*FILTERS, "version_history_id", "base_model_id", "source_group_id", "kind"),
    )
    _changes = (*DESCRIBED, "version_label", "version_history_id")

    def create(self, group: GroupRecord, *, check: bool = False) -> GroupRecord:
        """Record a group; with a version history, as the next version and the latest of it.

        Idempotent: the same id with the same base, members, metadata and origin is answered with
        what is there, and with other ones raises RecordConflict. With `check`, GroupInvalid or
        RecordConflict where its models do not make a group of its kind. One that was deleted comes
        back: the id that a file's group has follows from its content.
        """
        with self._database.write() as connection:
            stored = GROUPS.find(connection, group.id)
            if stored is not None:
                _check_repeated(stored, group)
                if stored.state is not GroupState.DELETED:
                    return stored
            _check_models(connection, group, check)
            if stored is not None:
                return GROUPS.move(connection, group.id, GroupState.ACTIVE, reason="")
            if group.source_group_id is not None:
                GROUPS.row(connection, group.source_group_id)  # raises RecordAbsent
            GROUPS.insert(connection, group, version_history_id=None, version=None)
            rows = [
                {"group_id": group.id, "position": at, **asdict(member)}
                for at, member in enumerate(group.members)
            ]
            if rows:
                connection.execute(insert(group_members), rows)
            if group.version_history_id is not None:
                HISTORIES.join(connection, group.version_history_id, group.id)
            return GROUPS.get(connection, group.id)

    def list_models(self, group_id: str, query: Query = FIRST, **filters: Any) -> Page[GroupModel]:
        """The members of a group together with their models."""
        with self._database.read() as connection:
            GROUPS.row(connection, group_id)  # raises RecordAbsent
            where = [group_members.c.group_id == group_id]
            return _MODELS.page(connection, query, filters, where, of=group_id)

    def _prepare(
        self, connection: Connection, stored: GroupRecord, changes: dict[str, Any]
    ) -> None:
        HISTORIES.take(connection, stored.id, changes)

    def _leave(self, connection: Connection, stored: GroupRecord, state: GroupState) -> None:
        """Raises RecordConflict for a group that a deployment has committed."""
        if state is not GroupState.ACTIVE:
            _check_not_served(connection, stored.id)
        if state is GroupState.DELETED:
            artifacts.drop(connection, stored.id)
            if stored.version_history_id is not None:
                HISTORIES.forget(connection, stored.version_history_id, stored.id)

    def attach(self, artifact: Artifact, expect: GroupRecord | None = None) -> GroupRecord:
        """Record the file of a HOMOGENEOUS group.

        Raises RecordConflict for a group of another kind, or with another file.
        """
        with self._database.write() as connection:
            stored = GROUPS.current(connection, artifact.owner_id, expect)
            if stored.kind != HOMOGENEOUS:
                raise RecordConflict(
                    f"model group {stored.id} is {stored.kind}; only a HOMOGENEOUS group has an "
                    "artifact"
                )
            there = artifacts.find(connection, stored.id, "")
            if there is not None and there.sha256 != artifact.sha256:
                raise RecordConflict(
                    f"model group {stored.id} has its artifact, and groups do not change; "
                    "create another group"
                )
            artifacts.put(connection, artifact)
            return GROUPS.change(connection, stored.id, {})


def _check_not_served(connection: Connection, id: str) -> None:
    user = connection.execute(
        select(deployments.c.id).where(
            deployments.c.group_id == id, deployments.c.state != DeploymentState.DELETED
        )
    ).scalar()
    if user is not None:
        raise RecordConflict(
            f"model group {id} is what deployment {user} serves; update that one first"
        )


def _check_repeated(stored: GroupRecord, group: GroupRecord) -> None:
    changed = differing(stored, group, _IMMUTABLE)
    if group.version_history_id not in (None, stored.version_history_id):
        changed.append("version_history_id")
    if changed:
        raise RecordConflict(
            f"model group {group.id} is there with other {', '.join(changed)}; groups do not "
            "change: create one with another id"
        )


def _check_models(connection: Connection, group: GroupRecord, check: bool) -> None:
    base = {group.base_model_id} if group.base_model_id else set()
    wanted = base | {member.model_id for member in group.members}
    there = MODELS.get_many(connection, sorted(wanted))
    absent = sorted(id for id in wanted if id not in there or there[id].state is ModelState.DELETED)
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise RecordAbsent(
            f"model {absent[0]}{more} of group {group.id} is not there; put it first"
        )
    if check:
        checked = {model.base_model_id for model in there.values() if model.base_model_id}
        check_composition(group, {**MODELS.get_many(connection, sorted(checked)), **there})
