"""Models of the catalogue as JSON: what was said of them, and what their content is.

Pure. It must not know where content stands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from stacked.api.wire.common import Json, head_of
from stacked.registry.records import Model

CUSTOM, DEFINED = "customMetadata", "definedMetadata"


def metadata_part(kind: str, key: str) -> str:
    """How the artifact of one metadatum is filed."""
    return f"{kind}/{key}"


def model_summary(record: Model) -> Json:
    return {
        **_outline(record),
        "modelVersionSetId": record.version_set_id,
        "modelVersionSetName": record.version_set_name,
        "versionId": record.version,
        "versionLabel": record.version_label or None,
    }


def _outline(record: Model) -> Json:
    """What is told of a model wherever one is listed."""
    return {
        **head_of(record, record.state.value),
        "category": record.category,
        "isModelByReference": is_by_reference(record),
    }


def is_by_reference(record: Model) -> bool:
    """Whether a base was not uploaded, and is read where it stands."""
    return record.kind == "base" and bool(record.source)


def model(record: Model, parts: Collection[str] = ()) -> Json:
    """`parts` are the metadata that have an artifact, as `metadata_part` names them."""
    ours = {
        "source": shown_source(record.source),
        "digest": record.digest,
        "kind": record.kind,
        "rank": str(record.rank) if record.rank else "",
        "bytes": str(record.bytes) if record.bytes else "",
        "baseModelId": record.base_model_id or "",
    }
    own: list[Json] = [{"key": key, "value": value} for key, value in ours.items() if value]
    extra = record.extra
    return {
        **model_summary(record),
        "description": record.description,
        "customMetadataList": _items([*extra.get("custom_metadata", ()), *own], CUSTOM, parts),
        "definedMetadataList": _items(extra.get("defined_metadata", ()), DEFINED, parts),
        "inputSchema": extra.get("input_schema"),
        "outputSchema": extra.get("output_schema"),
        "retentionSetting": extra.get("retention"),
        "backupSetting": extra.get("backup"),
        "retentionOperationDetails": None,
        "backupOperationDetails": None,
    }


def provenance(given: Json) -> Json:
    names = ("repositoryUrl", "gitBranch", "gitCommit", "scriptDir", "trainingScript", "trainingId")
    return {name: given.get(name) for name in names}


def shown_source(source: str) -> str:
    """A source as everyone may read it: no password and no signature of an address."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _items(given: Iterable[Any], kind: str, parts: Collection[str]) -> list[Json]:
    """Metadata with what it lacks, and a line for each artifact that no item names."""
    rest = [part.partition("/")[2] for part in parts if part.startswith(f"{kind}/")]
    items = list(given)
    items += [{"key": key} for key in rest if key not in {item.get("key") for item in items}]
    blank: Json = {"value": None, "description": None, "category": "Other", "keywords": []}
    return [{**blank, **item, "hasArtifact": item.get("key") in rest} for item in items]
