"""What the model catalogue may be asked: the bodies of its requests, to values.

Pure: it reads and refuses, and names the place. It must not know routes or records' tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from stacked.api.asked.common import Body, Described, Description, Json, Tagged, Text
from stacked.config import Ocid
from stacked.errors import ParameterInvalid

OURS = ("digest", "kind", "rank", "bytes", "baseModelId")
"""Keys of custom metadata that tell what an artifact is; what clients say of them is dropped."""
_ASKED = ("source", "modelId")


class ModelMetadata(Body):
    """One entry of a model's metadata. Whether it has an artifact follows from the artifacts."""

    key: Annotated[str, Field(min_length=1, max_length=255)]
    value: Any = None
    description: str | None = None
    category: str | None = None
    keywords: list[str] | None = None


class Retention(Body):
    archive_after_days: Annotated[int, Field(ge=1)]
    delete_after_days: Annotated[int, Field(ge=1)] | None = None
    customer_notification_type: str | None = None


class Backup(Body):
    is_backup_enabled: bool
    backup_region: str
    customer_notification_type: str | None = None


class _Details(Body):
    """What is kept as it is given, in creation and update."""

    custom_metadata_list: list[ModelMetadata] | None = None
    defined_metadata_list: list[ModelMetadata] | None = None
    model_version_set_id: str | None = None
    retention_setting: Retention | None = None
    backup_setting: Backup | None = None

    def item(self, key: str) -> str:
        """The value of a custom metadata item as text, empty where there is none."""
        items = self.custom_metadata_list or []
        found = next((item.value for item in items if item.key == key), None)
        return "" if found is None else str(found)

    def kept(self) -> Json:
        """What goes into a model's `extra`; what was left out is not in it."""
        given = {
            "custom_metadata": _items(self.custom_metadata_list, (*OURS, *_ASKED)),
            "defined_metadata": _items(self.defined_metadata_list, ()),
            "retention": _object(self.retention_setting),
            "backup": _object(self.backup_setting),
        }
        return {name: value for name, value in given.items() if value is not None}


class CreateModel(Tagged, _Details):
    """`POST /models`. The custom metadata item `source` does instead of an artifact."""

    description: Description = ""
    version_label: Text = ""
    input_schema: str | None = None
    output_schema: str | None = None

    def extra(self) -> Json:
        schemas = {"input_schema": self.input_schema, "output_schema": self.output_schema}
        return {**self.kept(), **{name: text for name, text in schemas.items() if text}}


class UpdateModel(Described, _Details):
    """`PUT /models/{id}`: a field that is left out stays."""

    version_label: str | None = None

    def changes(self, tags: Mapping[str, Any], extra: Mapping[str, Any]) -> Json:
        """The columns that change; `tags` and `extra` are those that the model has."""
        found = self.described(tags)
        if self.version_label is not None:
            found["version_label"] = self.version_label
        if self.model_version_set_id:
            found["version_set_id"] = self.model_version_set_id
        if self.kept():
            found["extra"] = {**extra, **self.kept()}
        return found


class Provenance(Body):
    """`POST` and `PUT /models/{id}/provenance`."""

    repository_url: str | None = None
    git_branch: str | None = None
    git_commit: str | None = None
    script_dir: str | None = None
    training_script: str | None = None
    training_id: str | None = None

    def given(self) -> Json:
        return self.model_dump(by_alias=True, exclude_none=True)


class _Identified(Body):
    model_id: Ocid | None = None


def model_id_given(body: CreateModel) -> str | None:
    """The model id that the custom metadata item `modelId` asks for. Raises ValidationError."""
    return _Identified.model_validate({"modelId": body.item("modelId") or None}).model_id


def check_source(body: UpdateModel, shown: str) -> None:
    """A source is read at creation. Raises ParameterInvalid where another one is given."""
    given = body.item("source")
    if given and given != shown:
        raise ParameterInvalid(
            "customMetadataList: source is read when a model is created; upload an artifact, or "
            "create another model"
        )


def _items(given: list[ModelMetadata] | None, without: tuple[str, ...]) -> list[Json] | None:
    if given is None:
        return None
    return [
        item.model_dump(by_alias=True, exclude_none=True)
        for item in given
        if item.key not in without
    ]


def _object(given: Body | None) -> Json | None:
    return None if given is None else given.model_dump(by_alias=True, exclude_none=True)
