"""Models, their metadata and provenance, as they are answered.

It must not know routes.
"""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict

from stacked.api.openapi.shapes.common import Category, Head, Tags, closed
from stacked.registry.states import ModelState


class Outline(Head):
    lifecycleState: ModelState
    lifecycleDetails: str
    category: Category
    isModelByReference: bool


class _ModelHead(Outline):
    modelVersionSetId: str | None
    modelVersionSetName: str | None
    versionId: int | None
    versionLabel: str | None


@closed
class ModelSummary(_ModelHead):
    """A model in a list: without metadata and description."""


@closed
class Metadata(TypedDict):
    key: str
    value: Any
    description: str | None
    category: str | None
    keywords: list[str]
    hasArtifact: bool


@closed
class Model(_ModelHead):
    """A base, an adapter, or a model that has no content yet."""

    description: str
    customMetadataList: list[Metadata]
    definedMetadataList: list[Metadata]
    inputSchema: str | None
    outputSchema: str | None
    retentionSetting: Tags | None
    backupSetting: Tags | None
    retentionOperationDetails: None
    backupOperationDetails: None


@closed
class ModelProvenance(TypedDict):
    repositoryUrl: str | None
    gitBranch: str | None
    gitCommit: str | None
    scriptDir: str | None
    trainingScript: str | None
    trainingId: str | None
