"""What the resources of the control plane share. A resource is one file: models, then routes.

How it is written; `histories.py` is the pattern:

1. Requests are `RequestModel`s (`Created`, `Updated`, `ListQuery`): camelCase, unknown fields are
   ignored. Responses are `ResponseModel`s (`Resource`), read from a record by `of(record)`; a field
   that the record calls otherwise has a `validation_alias`, one that is left out an `exclude_if`.
2. `router = resource_router(path, tag)`. A route's function is named as the SDK's operation, which
   is its operation id, and is a plain `def` (it runs in a thread) unless it awaits the service.
3. The signature is the document: path, body, `Annotated[XQuery, Query()]`, and `call`: `Read`;
   `Create` for a POST that makes something, `Action` for one to what is there, `Update` for PUT and
   DELETE. The return type is the response; without a body it is `Response`, and `**bare(204)`.
4. `responses=success("etag")` names the headers of a response, and statuses that do not follow from
   the signature (`openapi.py`). `call.shown` sets the etag, `call.paged` answers a list, `done`
   answers without a body. Errors are raised; `api/errors.py` has their statuses and codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel, to_snake

from stacked.registry.paging import MAX_LIMIT
from stacked.registry.records import Query as Reading
from stacked.registry.records import Record

Json = dict[str, Any]

# Clients leave out what is null; a null that is sent means the same.
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
Name = Annotated[Text, Field(max_length=255)]
Description = Annotated[Text, Field(max_length=400)]
EmptyAsNull = Annotated[str | None, BeforeValidator(lambda value: value or None)]


def moment(time: datetime) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Moment = Annotated[
    datetime,
    PlainSerializer(moment, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]


class RequestModel(BaseModel):
    """Unknown fields are ignored: the SDK sends what its models have, and dicts as they are."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="ignore", frozen=True, protected_namespaces=()
    )


class Created(RequestModel):
    """What is created: its name, where it belongs, its tags."""

    display_name: Name = ""
    compartment_id: Text = ""
    project_id: Text = ""
    freeform_tags: Json | None = None
    defined_tags: Json | None = None

    def tags(self) -> Json:
        given = {"freeform": self.freeform_tags, "defined": self.defined_tags}
        return {name: value for name, value in given.items() if value}

    def head(self, created_by: str, named: str = "") -> Json:
        """The fields of a record that every resource has; `named` begins a name that is made."""
        made = f"{named}-{datetime.now(UTC):%Y%m%d-%H%M%S}" if named else ""
        return {
            "display_name": self.display_name or made,
            "compartment_id": self.compartment_id,
            "project_id": self.project_id,
            "created_by": created_by,
            "tags": self.tags(),
        }


class Updated(RequestModel):
    """What is updated: a field that is left out stays."""

    display_name: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    description: Annotated[str, Field(max_length=400)] | None = None
    freeform_tags: Json | None = None
    defined_tags: Json | None = None

    def changes(self, record: Record) -> Json:
        """The columns of the record that change."""
        given = {"freeform": self.freeform_tags, "defined": self.defined_tags}
        new = {name: value for name, value in given.items() if value is not None}
        columns = {"display_name": self.display_name, "description": self.description}
        found: Json = {name: value for name, value in columns.items() if value is not None}
        return {**found, "tags": {**record.tags, **new}} if new else found


class ChangeCompartment(RequestModel):
    """`POST …/actions/changeCompartment`."""

    compartment_id: Annotated[str, Field(min_length=1)]


class Paged(RequestModel):
    """The query of every list: which part of it."""

    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 100
    page: str | None = Field(None, description="The `opc-next-page` of the page before, verbatim")

    def reading(self) -> Reading:
        return Reading(limit=self.limit, page=self.page)


# How the registry calls what sorts a list.
_COLUMNS = {"lifecycleState": "state", "operationType": "operation", "name": "display_name"}


COMPARTMENT = Field(None, description="Accepted and ignored: a server is one compartment")


class ListQuery(Paged):
    """The query of a list of records. What it filters by is called as the registry calls it."""

    compartment_id: str | None = COMPARTMENT
    sort_by: str | None = None
    sort_order: Literal["ASC", "DESC"] | None = Field(
        None, description="Times run down by default, the rest up"
    )

    def reading(self) -> Reading:
        sort = self.sort_by and _COLUMNS.get(self.sort_by, to_snake(self.sort_by))
        falls = None if self.sort_order is None else self.sort_order == "DESC"
        return Reading(sort=sort, descending=falls, limit=self.limit, page=self.page)

    def filters(self) -> Json:
        return self.model_dump(exclude=set(ListQuery.model_fields), exclude_none=True)


class HeadQuery(ListQuery):
    """The query of most lists."""

    sort_by: Literal["timeCreated", "displayName", "lifecycleState"] | None = None
    id: str | None = None
    display_name: str | None = None
    created_by: str | None = None
    project_id: str | None = None


class ResponseModel(BaseModel):
    """Read from a record; nothing is in a response that is not declared."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        from_attributes=True,
        frozen=True,
        json_schema_serialization_defaults_required=True,
        protected_namespaces=(),
        validate_by_alias=True,
        validate_by_name=True,
    )

    @classmethod
    def of(cls, record: Any, **more: Any) -> Self:
        """Read from the attributes of a record, and `more` that it does not have."""
        return cls.model_validate(_With(record, more) if more else record)


class _With:
    """A record with more attributes than its own."""

    def __init__(self, record: Any, more: Mapping[str, Any]) -> None:
        self._record = record
        self.__dict__.update(more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)


class Tagged(ResponseModel):
    freeform_tags: Json = Field(
        validation_alias=AliasPath("tags", "freeform"), default_factory=dict
    )
    defined_tags: Json = Field(validation_alias=AliasPath("tags", "defined"), default_factory=dict)


class Resource(Tagged):
    """What every resource has."""

    id: str
    compartment_id: str
    project_id: str
    display_name: str
    created_by: str
    time_created: Moment


class StatefulResource(Resource):
    """What has a reason for its state, and says when it changed."""

    lifecycle_details: str = Field(validation_alias="reason")
    time_updated: Moment
    system_tags: Json = Field(default_factory=dict)
