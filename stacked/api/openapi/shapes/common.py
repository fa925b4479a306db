"""What the answers of all resources share: errors, and the head of every record.

It must not know routes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, WithJsonSchema, with_config
from typing_extensions import TypedDict

closed = with_config(ConfigDict(extra="forbid"))
open_ = with_config(ConfigDict(extra="allow"))

Moment = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Tags = dict[str, Any]
Category = Literal["USER", "SERVICE"]


@closed
class Error(TypedDict):
    """Every error outside `/v1`."""

    code: str
    message: str


@closed
class OpenAIErrorDetails(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | int | None


@closed
class OpenAIError(TypedDict):
    """Every error of `/v1`."""

    error: OpenAIErrorDetails


class Head(TypedDict):
    """What every resource has."""

    id: str
    compartmentId: str
    projectId: str
    displayName: str
    createdBy: str
    timeCreated: Moment
    freeformTags: Tags
    definedTags: Tags
