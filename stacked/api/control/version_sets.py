"""Version sets of models: `/20190101/modelVersionSets`; bodies, answers and routes.

It must not know what the models of a set are.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.params import Depends
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from stacked.api import wire
from stacked.api.asked.common import ChangeCompartment, Described, Description, Tagged
from stacked.api.control.answers import done, expected, read, shown
from stacked.api.control.finished import VERSION_SET as KIND
from stacked.api.control.finished import finished
from stacked.api.gate import principal_of
from stacked.api.lists import FILTERS, SORTS, Names, listed
from stacked.registry import VERSION_SET, new_id
from stacked.registry import ModelVersionSet as Record
from stacked.registry.states import HistoryState
from stacked.service import Service

_ALL = "/modelVersionSets"
_ONE = f"{_ALL}/{{id}}"


Moment = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


class Category(enum.StrEnum):
    """Whose a set is; all that are here are users'."""

    USER = "USER"
    SERVICE = "SERVICE"


LIST_SORTS = {name.replace("displayName", "name"): column for name, column in SORTS.items()}
LIST_FILTERS: Names = {
    **{name: field for name, field in FILTERS.items() if name != "displayName"},
    "name": "display_name",
    "lifecycleState": HistoryState,
    "category": Category,
}


class CreateModelVersionSet(Tagged):
    """`POST /modelVersionSets`."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    description: Description = ""


class UpdateModelVersionSet(Described):
    """`PUT /modelVersionSets/{id}`: a field that is left out stays, and so does the name."""

    def changes(self, tags: Mapping[str, Any]) -> dict[str, Any]:
        """The columns that change; `tags` are those that the set has."""
        found = self.described(tags)
        found.pop("display_name", None)
        return found


class ModelVersionSetSummary(BaseModel):
    """A set in a list."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, protected_namespaces=()
    )

    id: str
    compartment_id: str
    project_id: str
    name: str
    lifecycle_state: Literal["ACTIVE", "DELETING", "DELETED", "FAILED"]
    time_created: Moment
    time_updated: Moment
    created_by: str
    category: Literal["USER"] = "USER"
    freeform_tags: dict[str, Any]
    defined_tags: dict[str, Any]
    system_tags: dict[str, Any] = {}

    @classmethod
    def of(cls, record: Record) -> dict[str, Any]:
        """A record as it is answered."""
        tree = {
            **wire.head_of(record, record.state.value),
            "name": record.display_name,
            "description": record.description,
            "timeUpdated": wire.moment(record.time_updated),
        }
        return cls.model_validate(tree).model_dump(by_alias=True)


class ModelVersionSet(ModelVersionSetSummary):
    """Models under one name."""

    description: str


def version_set_routes(router: APIRouter, service: Service, allowed: Depends) -> None:
    _create_and_read(router, service, allowed)
    _change(router, service, allowed)


def _create_and_read(router: APIRouter, service: Service, allowed: Depends) -> None:
    @router.post(_ALL, dependencies=[allowed])
    async def create(request: Request) -> JSONResponse:
        body = await read(request, service, CreateModelVersionSet)
        new = Record(
            id=new_id(VERSION_SET),
            display_name=body.name,
            description=body.description,
            compartment_id=body.compartment_id,
            project_id=body.project_id,
            created_by=principal_of(request.scope),
            tags=body.tags(),
        )
        return _shown(await asyncio.to_thread(service.registry.create_version_set, new))

    @router.get(_ALL)
    def list_(request: Request) -> JSONResponse:
        reads = service.registry.list_version_sets
        return listed(request, reads, LIST_SORTS, LIST_FILTERS, ModelVersionSetSummary.of)

    @router.get(_ONE)
    def get(id: str) -> JSONResponse:
        return _shown(service.registry.get_version_set(id))


def _change(router: APIRouter, service: Service, allowed: Depends) -> None:
    async def write(record: Record, request: Request, changes: Any) -> Record:
        call, expect = service.registry.update_version_set, expected(request, record)
        return await asyncio.to_thread(call, record.id, expect, **changes)

    @router.put(_ONE, dependencies=[allowed])
    async def update(id: str, request: Request) -> JSONResponse:
        body = await read(request, service, UpdateModelVersionSet)
        record = await asyncio.to_thread(service.registry.get_version_set, id)
        return _shown(await write(record, request, body.changes(record.tags)))

    @router.post(f"{_ONE}/actions/changeCompartment", dependencies=[allowed])
    async def move(id: str, request: Request) -> Response:
        body = await read(request, service, ChangeCompartment)
        record = await asyncio.to_thread(service.registry.get_version_set, id)
        moved = await write(record, request, {"compartment_id": body.compartment_id})
        of = ("MODELVERSIONSET_MOVE", "UPDATED", KIND, moved)
        return done(moved, await asyncio.to_thread(finished, service.registry, *of))

    @router.delete(_ONE, dependencies=[allowed])
    def delete(
        id: str,
        request: Request,
        with_models: Annotated[bool, Query(alias="isDeleteRelatedModels")] = False,
    ) -> Response:
        """With its models, these go first; one that is served stops it there."""
        expect = expected(request, service.registry.get_version_set(id))
        if with_models:
            for model_id in service.registry.models_of_version_set(id):
                service.catalogue.delete(model_id)
        gone = service.registry.delete_version_set(id, expect)
        work = finished(service.registry, "MODELVERSIONSET_DELETE", "DELETED", KIND, gone)
        return done(gone, work, 202)


def _shown(record: Record) -> JSONResponse:
    return shown(ModelVersionSet.of(record), record)
