"""What is served: a base, and a group of fine-tunes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stacked.config.experiments import Design
from stacked.config.fields import Frozen, Key, Ocid
from stacked.core import MAX_WEIGHT, MIN_WEIGHT


class BaseConfig(Frozen):
    """The base model: a directory, a Hub id, or a name that `stacked prepare` knows."""

    model: str = Field(min_length=1)
    key: Key = "base"
    id: Ocid | None = None


class MemberConfig(Frozen):
    """One fine-tune. Without `id`, the model id is derived from the content digest."""

    source: str = Field(min_length=1)
    key: Key | None = None
    id: Ocid | None = None
    weight: float = Field(default=1.0, ge=MIN_WEIGHT, le=MAX_WEIGHT)
    """Its share of the engine among the keys of one caller."""
    foreign_tokens: bool = False
    """Serve it even if its tokenizer has tokens that the base's lacks, without these."""


class GroupConfig(Design):
    """The group that a file declares."""

    name: str = Field(default="default", min_length=1, max_length=255)
    kind: Literal["STACKED", "HETEROGENEOUS"] = "STACKED"
    """STACKED: a base and its adapters. HETEROGENEOUS: models of any framework, without a base."""
    members: tuple[MemberConfig, ...] = ()
    metadata: dict[str, str] = Field(default_factory=dict)

    @property
    def recorded_metadata(self) -> dict[str, str]:
        """The metadata of the group's record: that of the file, and its design."""
        return {**self.metadata, **self.as_metadata()}
