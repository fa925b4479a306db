"""Version histories of model groups: `/20190101/modelGroupVersionHistory`, singular."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import Field

from stacked.api.control.base import (
    CHANGE,
    POST,
    Caller,
    ChangeCompartment,
    Created,
    Description,
    HeadQuery,
    IfMatch,
    Json,
    Served,
    StatefulResource,
    Updated,
    bare,
    done,
    expected,
    finished,
    paged,
    resource_router,
    shown,
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
    """A line of groups."""

    description: str


@router.post("", dependencies=POST, responses=success("etag"))
def create_model_group_version_history(
    body: CreateHistory, service: Served, caller: Caller, response: Response
) -> ModelGroupVersionHistory:
    new = VersionHistory(
        id=new_id(HISTORY),
        description=body.description,
        latest_group_id=body.latest_model_group_id or None,
        **body.head(caller),
    )
    record = service.registry.histories.create(new)
    return shown(response, record, ModelGroupVersionHistory.of(record))


@router.get("", responses=success("opc-next-page"))
def list_model_group_version_histories(
    query: Annotated[HistoryQuery, Query()], service: Served, response: Response
) -> list[ModelGroupVersionHistorySummary]:
    page = service.registry.histories.list(query.reading(), **query.filters())
    return paged(response, page, ModelGroupVersionHistorySummary.of)


@router.get("/{id}", responses=success("etag"))
def get_model_group_version_history(
    id: str, service: Served, response: Response
) -> ModelGroupVersionHistory:
    record = service.registry.histories.get(id)
    return shown(response, record, ModelGroupVersionHistory.of(record))


@router.put("/{id}", dependencies=CHANGE, responses=success("etag"))
def update_model_group_version_history(
    id: str, body: UpdateHistory, service: Served, response: Response, if_match: IfMatch = None
) -> ModelGroupVersionHistory:
    record = service.registry.histories.get(id)
    changes: Any = body.changes(record)
    expect = expected(if_match, record)
    record = service.registry.histories.update(id, expect, **changes)
    return shown(response, record, ModelGroupVersionHistory.of(record))


@router.post("/{id}/actions/changeCompartment", dependencies=POST, **bare(204, "etag"))
def change_model_group_version_history_compartment(
    id: str, body: ChangeCompartment, service: Served, if_match: IfMatch = None
) -> Response:
    expect = expected(if_match, service.registry.histories.get(id))
    change = service.registry.histories.update
    return done(change(id, expect, compartment_id=body.compartment_id))


@router.delete("/{id}", dependencies=CHANGE, **bare(202, "etag", "opc-work-request-id"))
def delete_model_group_version_history(
    id: str, service: Served, if_match: IfMatch = None
) -> Response:
    registry = service.registry
    expect = expected(if_match, registry.histories.get(id))
    registry.histories.set_state(id, HistoryState.DELETING, expect=expect)
    gone = registry.histories.set_state(id, HistoryState.DELETED)
    operation = "MODEL_GROUP_VERSION_HISTORY_DELETE"
    return done(gone, finished(registry, operation, "DELETED", _KIND, gone), 202)
