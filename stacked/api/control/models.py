"""The model catalogue: `/20190101/models`, without the artifacts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal, Self

from fastapi import Path, Query, Response
from pydantic import AliasPath, Field

from stacked.api.control.base import (
    ChangeCompartment,
    Created,
    Description,
    EmptyAsNull,
    HeadQuery,
    Json,
    RequestModel,
    Resource,
    ResponseModel,
    Text,
    Updated,
)
from stacked.api.control.calls import (
    Action,
    Call,
    Change,
    Create,
    Read,
    Update,
    bare,
    done,
    resource_router,
    success,
)
from stacked.core import check_model_id
from stacked.errors import ParameterInvalid, RecordAbsent, RecordConflict, Unsupported
from stacked.logs import shown_url
from stacked.registry import MODEL, new_id, records
from stacked.registry.records import Record
from stacked.registry.states import ModelState

router = resource_router("/models", "Models")

Category = Literal["USER", "SERVICE"]

# Custom metadata that is read when a model is created.
_SOURCE, _MODEL_ID = "source", "modelId"
# Custom metadata that the server writes; values sent by clients are ignored.
_CONTENT = ("digest", "kind", "rank", "bytes", "baseModelId")

# Operations on OCI's object storage, and what has the same effect here.
OBJECT_STORAGE = {
    "exportArtifact": "upload the artifact: POST …/artifact",
    "importArtifact": "download it: GET …/artifact/content",
    "registerArtifactReference": (
        "name a path with the custom metadata item `source` when the model is created"
    ),
    "restore": "nothing is archived here; the artifact is there",
}


# -- requests -----------------------------------------------------------------------------


class ModelQuery(HeadQuery):
    state: ModelState | None = Field(None, alias="lifecycleState")
    category: Category | None = None
    version_label: str | None = None
    version_set_name: str | None = Field(None, alias="modelVersionSetName")


class ModelMetadata(RequestModel):
    """One entry of a model's metadata. Whether it has an artifact follows from the artifacts."""

    key: Annotated[str, Field(min_length=1, max_length=255)]
    value: Any = None
    description: str | None = None
    category: str | None = None
    keywords: list[str] | None = None


class Retention(RequestModel):
    archive_after_days: Annotated[int, Field(ge=1)]
    delete_after_days: Annotated[int, Field(ge=1)] | None = None
    customer_notification_type: str | None = None


class Backup(RequestModel):
    is_backup_enabled: bool
    backup_region: str
    customer_notification_type: str | None = None


class _Details(RequestModel):
    """Fields that create and update store as given."""

    custom_metadata_list: list[ModelMetadata] | None = None
    defined_metadata_list: list[ModelMetadata] | None = None
    model_version_set_id: str | None = None
    retention_setting: Retention | None = None
    backup_setting: Backup | None = None

    def item(self, key: str) -> str:
        """The value of a custom metadata item as text; empty without one."""
        items = self.custom_metadata_list or []
        found = next((item.value for item in items if item.key == key), None)
        return "" if found is None else str(found)

    def extra(self) -> Json:
        """The values for a model's `extra`, without absent fields."""
        ours = (*_CONTENT, _SOURCE, _MODEL_ID)
        custom = self.custom_metadata_list
        given = {
            "custom_metadata": custom and [item for item in custom if item.key not in ours],
            "defined_metadata": self.defined_metadata_list,
            "retention": self.retention_setting,
            "backup": self.backup_setting,
        }
        return {name: _stored(value) for name, value in given.items() if value is not None}


def _stored(value: RequestModel | list[ModelMetadata]) -> Any:
    if isinstance(value, list):
        return [_stored(item) for item in value]
    return value.model_dump(by_alias=True, exclude_none=True)


class CreateModel(Created, _Details):
    """The custom metadata item `source` can replace an artifact."""

    description: Description = ""
    version_label: Text = ""
    input_schema: str | None = None
    output_schema: str | None = None

    def model_id(self) -> str | None:
        """The requested id of the model, if any. Raises ParameterInvalid."""
        text = self.item(_MODEL_ID)
        try:
            return check_model_id(text) if text else None
        except ValueError as error:
            raise ParameterInvalid(f"customMetadataList: {_MODEL_ID}: {error}") from error

    def record(self, created_by: str) -> records.Model:
        schemas = {"input_schema": self.input_schema, "output_schema": self.output_schema}
        return records.Model(
            id=new_id(MODEL),
            description=self.description,
            version_label=self.version_label,
            version_set_id=self.model_version_set_id or None,
            extra={**self.extra(), **{name: text for name, text in schemas.items() if text}},
            **self.head(created_by, named="model"),
        )


class UpdateModel(Updated, _Details):
    version_label: str | None = None

    def changes(self, record: Record) -> Json:
        """Raises ParameterInvalid for another source, which only a new model can have."""
        assert isinstance(record, records.Model)
        source = self.item(_SOURCE)
        if source and source != shown_url(record.source):
            raise ParameterInvalid(
                "customMetadataList: source is read when a model is created; upload an artifact, "
                "or create another model"
            )
        found = super().changes(record)
        if self.version_label is not None:
            found["version_label"] = self.version_label
        if self.model_version_set_id:
            found["version_set_id"] = self.model_version_set_id
        if extra := self.extra():
            found["extra"] = {**record.extra, **extra}
        return found


class Provenance(RequestModel):
    repository_url: str | None = None
    git_branch: str | None = None
    git_commit: str | None = None
    script_dir: str | None = None
    training_script: str | None = None
    training_id: str | None = None


# -- responses ----------------------------------------------------------------------------


class ModelOutline(Resource):
    """The fields of a model in every list."""

    lifecycle_state: ModelState = Field(validation_alias="state")
    lifecycle_details: str = Field(validation_alias="reason")
    category: Category
    is_model_by_reference: bool = Field(validation_alias="by_reference")


class ModelSummary(ModelOutline):
    """A model in a list: without metadata and description."""

    model_version_set_id: str | None = Field(validation_alias="version_set_id")
    model_version_set_name: str | None = Field(validation_alias="version_set_name")
    version_id: int | None = Field(validation_alias="version")
    version_label: EmptyAsNull


class Metadata(ResponseModel):
    key: str
    value: Any = None
    description: str | None = None
    category: str | None = "Other"
    keywords: list[str] = Field(default_factory=list)
    has_artifact: bool = False


def _extra(name: str) -> Any:
    return AliasPath("extra", name)


class Model(ModelSummary):
    """A base, an adapter, a model that is neither, or one without content."""

    description: str
    custom_metadata_list: list[Metadata]
    defined_metadata_list: list[Metadata]
    input_schema: str | None = Field(None, validation_alias=_extra("input_schema"))
    output_schema: str | None = Field(None, validation_alias=_extra("output_schema"))
    retention_setting: Json | None = Field(None, validation_alias=_extra("retention"))
    backup_setting: Json | None = Field(None, validation_alias=_extra("backup"))
    retention_operation_details: None = None
    backup_operation_details: None = None

    @classmethod
    def of(cls, record: Any, *, parts: Collection[str] = (), **more: Any) -> Self:
        """`parts`: the metadata that have an artifact, such as `customMetadata/key`."""
        custom = [*record.extra.get("custom_metadata", ()), *_content(record)]
        defined = record.extra.get("defined_metadata", ())
        return super().of(
            record,
            custom_metadata_list=_items(custom, "customMetadata/", parts),
            defined_metadata_list=_items(defined, "definedMetadata/", parts),
            **more,
        )


class ModelProvenance(Provenance, ResponseModel):
    """Where a model comes from: its repository, commit and training script."""


def _content(record: records.Model) -> list[Json]:
    """A model's content, described as custom metadata."""
    values = (
        shown_url(record.source),
        record.digest,
        record.kind,
        record.rank,
        record.bytes,
        record.base_model_id,
    )
    pairs = zip((_SOURCE, *_CONTENT), values, strict=True)
    return [{"key": key, "value": str(value)} for key, value in pairs if value]


def _items(given: Iterable[Json], where: str, parts: Collection[str]) -> list[Metadata]:
    """The items, marked if they have an artifact, and one for each artifact without an item."""
    keys = [part.removeprefix(where) for part in parts if part.startswith(where)]
    items = list(given)
    named = {item["key"] for item in items}
    items += [{"key": key} for key in keys if key not in named]
    return [Metadata(**item, has_artifact=item["key"] in keys) for item in items]


# -- routes -------------------------------------------------------------------------------


def _answer(call: Call, record: records.Model) -> Model:
    parts = [artifact.part for artifact in call.registry.artifacts.of(record.id)]
    return call.shown(record, Model.of(record, parts=parts))


@router.post("", responses=success("etag", also=(404, 502)))
def create_model(body: CreateModel, call: Create) -> Model:
    new = body.record(call.caller)
    source = body.item(_SOURCE)
    if not source:
        return _answer(call, call.registry.models.put(new))
    return _answer(call, call.service.catalogue.register(new, source, body.model_id()))


@router.get("", responses=success("opc-next-page"))
def list_models(query: Annotated[ModelQuery, Query()], call: Read) -> list[ModelSummary]:
    page = call.registry.models.list(query.reading(), **query.filters())
    return call.paged(page, ModelSummary.of)


@router.get("/{id}", responses=success("etag"))
def get_model(id: str, call: Read) -> Model:
    return _answer(call, call.registry.models.get(id))


@router.put("/{id}", responses=success("etag"))
def update_model(id: str, body: UpdateModel, call: Update) -> Model:
    record = call.registry.models.get(id)
    expect, changes = call.expected(record), body.changes(record)
    return _answer(call, call.registry.models.update(id, expect, **changes))


@router.delete("/{id}", **bare(204, "etag"))
def delete_model(id: str, call: Update) -> Response:
    expect = call.expected(call.registry.models.get(id))
    return done(call.service.catalogue.delete(id, expect))


@router.post("/{id}/actions/activate", responses=success("etag"))
def activate_model(id: str, call: Action) -> Model:
    return _moved(id, ModelState.ACTIVE, call)


@router.post("/{id}/actions/deactivate", responses=success("etag"))
def deactivate_model(id: str, call: Action) -> Model:
    return _moved(id, ModelState.INACTIVE, call)


def _moved(id: str, state: ModelState, call: Change) -> Model:
    expect = call.expected(call.registry.models.get(id))
    return _answer(call, call.registry.models.set_state(id, state, expect=expect))


@router.post("/{id}/actions/changeCompartment", **bare(204, "etag"))
def change_model_compartment(id: str, body: ChangeCompartment, call: Action) -> Response:
    expect = call.expected(call.registry.models.get(id))
    compartment = body.compartment_id
    return done(call.registry.models.update(id, expect, compartment_id=compartment))


@router.post("/{id}/actions/{action}", status_code=501)
def move_model_artifact_to_or_from_object_storage(
    id: str,
    action: Annotated[str, Path(json_schema_extra={"enum": sorted(OBJECT_STORAGE)})],
    call: Action,
    hours: Annotated[int | None, Query(alias="restoreModelForHoursSpecified")] = None,
) -> None:
    """Operations on OCI's object storage; the error names the equivalent here."""
    advice = OBJECT_STORAGE.get(action)
    if advice is None:
        raise RecordAbsent(f"models have no action {action[:40]!r}")
    raise Unsupported(f"{action} needs OCI's object storage, which is not here; {advice}")


# -- provenance ---------------------------------------------------------------------------


@router.post("/{id}/provenance", responses=success("etag"))
def create_model_provenance(id: str, body: Provenance, call: Action) -> ModelProvenance:
    record = call.registry.models.get(id)
    expect = call.expected(record)
    if "provenance" in record.extra:
        raise RecordConflict(f"model {id} has a provenance; update it instead")
    return _provided(call, record, expect, _stored(body))


@router.put("/{id}/provenance", responses=success("etag"))
def update_model_provenance(id: str, body: Provenance, call: Update) -> ModelProvenance:
    record = call.registry.models.get(id)
    expect = call.expected(record)
    given = {**_provenance(record), **_stored(body)}
    return _provided(call, record, expect, given)


@router.get("/{id}/provenance", responses=success("etag"))
def get_model_provenance(id: str, call: Read) -> ModelProvenance:
    record = call.registry.models.get(id)
    return call.shown(record, ModelProvenance.of(_provenance(record)))


def _provided(
    call: Call, record: records.Model, expect: records.Model | None, given: Json
) -> ModelProvenance:
    extra = {**record.extra, "provenance": given}
    changed = call.registry.models.update(record.id, expect, extra=extra)
    return call.shown(changed, ModelProvenance.of(given))


def _provenance(record: records.Model) -> Json:
    found: Json | None = record.extra.get("provenance")
    if found is None:
        raise RecordAbsent(f"model {record.id} has no provenance")
    return found
