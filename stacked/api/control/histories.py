"""Version histories of model groups: `/20190101/modelGroupVersionHistory`, singular."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import Field

from stacked.api.control.base import (
    ChangeCompartment,
    Created,
    Description,
    HeadQuery,
    Json,
    StatefulResource,
    Updated,
)
from stacked.api.control.calls import (
    Action,
    Create,
    Read,
    Update,
    bare,
    done,
    finished,
    resource_router,
    success,
)
from stacked.registry import HISTORY, new_id
from stacked.registry.records import Record, VersionHistory
from stacked.registry.states import HistoryState

_KIND = ("data-science-modelgroupversionhistory", "modelGroupVersionHistory")

router = resource_router("/modelGroupVersionHistory", "Version histories")


class HistoryQuery(HeadQuery):
    state: HistoryState | None = Field(None, alias="lifecycleState")


class CreateHistory(Created):
    display_name: Annotated[str, Field(min_length=1, max_length=255)]
    description: Description = ""
    latest_model_group_id: str | None = None


class UpdateHistory(Updated):
    latest_model_group_id: str | None = None

    def changes(self, record: Record) -> Json:
        latest = self.latest_model_group_id
        return {**super().changes(record), **({"latest_group_id": latest} if latest else {})}


class ModelGroupVersionHistorySummary(StatefulResource):
    """A version history in a list."""

    lifecycle_state: HistoryState = Field(validation_alias="state")
    latest_model_group_id: str | None = Field(validation_alias="latest_group_id")


class ModelGroupVersionHistory(ModelGroupVersionHistorySummary):
    """Successive versions of a group."""

    description: str


@router.post("", responses=success("etag"))
def create_model_group_version_history(
    body: CreateHistory, call: Create
) -> ModelGroupVersionHistory:
    new = VersionHistory(
        id=new_id(HISTORY),
        description=body.description,
        latest_group_id=body.latest_model_group_id or None,
        **body.head(call.caller),
    )
    record = call.registry.histories.create(new)
    return call.shown(record, ModelGroupVersionHistory.of(record))


@router.get("", responses=success("opc-next-page"))
def list_model_group_version_histories(
    query: Annotated[HistoryQuery, Query()], call: Read
) -> list[ModelGroupVersionHistorySummary]:
    page = call.registry.histories.list(query.reading(), **query.filters())
    return call.paged(page, ModelGroupVersionHistorySummary.of)


@router.get("/{id}", responses=success("etag"))
def get_model_group_version_history(id: str, call: Read) -> ModelGroupVersionHistory:
    record = call.registry.histories.get(id)
    return call.shown(record, ModelGroupVersionHistory.of(record))


@router.put("/{id}", responses=success("etag"))
def update_model_group_version_history(
    id: str, body: UpdateHistory, call: Update
) -> ModelGroupVersionHistory:
    record = call.registry.histories.get(id)
    changes: Any = body.changes(record)
    expect = call.expected(record)
    record = call.registry.histories.update(id, expect, **changes)
    return call.shown(record, ModelGroupVersionHistory.of(record))


@router.post("/{id}/actions/changeCompartment", **bare(204, "etag"))
def change_model_group_version_history_compartment(
    id: str, body: ChangeCompartment, call: Action
) -> Response:
    expect = call.expected(call.registry.histories.get(id))
    change = call.registry.histories.update
    return done(change(id, expect, compartment_id=body.compartment_id))


@router.delete("/{id}", **bare(202, "etag", "opc-work-request-id"))
def delete_model_group_version_history(id: str, call: Update) -> Response:
    registry = call.registry
    expect = call.expected(registry.histories.get(id))
    registry.histories.set_state(id, HistoryState.DELETING, expect=expect)
    gone = registry.histories.set_state(id, HistoryState.DELETED)
    operation = "MODEL_GROUP_VERSION_HISTORY_DELETE"
    return done(gone, finished(registry, operation, "DELETED", _KIND, gone), 202)
