"""Version sets of models: `/20190101/modelVersionSets`."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

from fastapi import Query, Response
from pydantic import Field

from stacked.api.control.base import (
    ChangeCompartment,
    Created,
    Description,
    Json,
    ListQuery,
    Moment,
    Tagged,
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
from stacked.registry import VERSION_SET, new_id
from stacked.registry import ModelVersionSet as VersionSet
from stacked.registry.records import Record
from stacked.registry.states import HistoryState

_KIND = ("data-science-modelversionset", "modelVersionSets")

router = resource_router("/modelVersionSets", "Model version sets")


class Category(enum.StrEnum):
    """Who owns the set; only users' exist here."""

    USER = "USER"
    SERVICE = "SERVICE"


class VersionSetQuery(ListQuery):
    sort_by: Literal["timeCreated", "name", "lifecycleState"] | None = None
    id: str | None = None
    display_name: str | None = Field(None, alias="name")
    created_by: str | None = None
    project_id: str | None = None
    state: HistoryState | None = Field(None, alias="lifecycleState")
    category: Category | None = None


class CreateModelVersionSet(Created):
    display_name: Annotated[str, Field(alias="name", min_length=1, max_length=255)]
    description: Description = ""


class UpdateModelVersionSet(Updated):
    """The name cannot change: models refer to it."""

    def changes(self, record: Record) -> Json:
        found = super().changes(record)
        found.pop("display_name", None)
        return found


class ModelVersionSetSummary(Tagged):
    """A set in a list."""

    id: str
    compartment_id: str
    project_id: str
    name: str = Field(validation_alias="display_name")
    lifecycle_state: HistoryState = Field(validation_alias="state")
    time_created: Moment
    time_updated: Moment
    created_by: str
    category: Literal[Category.USER] = Category.USER
    system_tags: Json = Field(default_factory=dict)


class ModelVersionSet(ModelVersionSetSummary):
    """Versions of a model under one name."""

    description: str


@router.post("", responses=success("etag"))
def create_model_version_set(body: CreateModelVersionSet, call: Create) -> ModelVersionSet:
    new = VersionSet(id=new_id(VERSION_SET), description=body.description, **body.head(call.caller))
    record = call.registry.version_sets.create(new)
    return call.shown(record, ModelVersionSet.of(record))


@router.get("", responses=success("opc-next-page"))
def list_model_version_sets(
    query: Annotated[VersionSetQuery, Query()], call: Read
) -> list[ModelVersionSetSummary]:
    page = call.registry.version_sets.list(query.reading(), **query.filters())
    return call.paged(page, ModelVersionSetSummary.of)


@router.get("/{id}", responses=success("etag"))
def get_model_version_set(id: str, call: Read) -> ModelVersionSet:
    record = call.registry.version_sets.get(id)
    return call.shown(record, ModelVersionSet.of(record))


@router.put("/{id}", responses=success("etag"))
def update_model_version_set(id: str, body: UpdateModelVersionSet, call: Update) -> ModelVersionSet:
    record = call.registry.version_sets.get(id)
    changes: Any = body.changes(record)
    expect = call.expected(record)
    record = call.registry.version_sets.update(id, expect, **changes)
    return call.shown(record, ModelVersionSet.of(record))


@router.post("/{id}/actions/changeCompartment", **bare(204, "etag", "opc-work-request-id"))
def change_model_version_set_compartment(
    id: str, body: ChangeCompartment, call: Action
) -> Response:
    registry = call.registry
    expect = call.expected(registry.version_sets.get(id))
    moved = registry.version_sets.update(id, expect, compartment_id=body.compartment_id)
    return done(moved, finished(registry, "MODELVERSIONSET_MOVE", "UPDATED", _KIND, moved))


@router.delete("/{id}", **bare(202, "etag", "opc-work-request-id"))
def delete_model_version_set(
    id: str,
    call: Update,
    with_models: Annotated[bool, Query(alias="isDeleteRelatedModels")] = False,
) -> Response:
    """With `isDeleteRelatedModels`, its models are deleted first; a served one stops that."""
    registry = call.registry
    expect = call.expected(registry.version_sets.get(id))
    if with_models:
        for model_id in registry.version_sets.models_of(id):
            call.service.catalogue.delete(model_id)
    gone = registry.version_sets.delete(id, expect)
    work = finished(registry, "MODELVERSIONSET_DELETE", "DELETED", _KIND, gone)
    return done(gone, work, 202)
