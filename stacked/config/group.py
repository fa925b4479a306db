"""What is served: a base, and a group of fine-tunes."""

from __future__ import annotations

from pydantic import Field

from stacked.config.fields import Frozen, Key, Ocid


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
    foreign_tokens: bool = False
    """Serve it even if its tokenizer has tokens that the base's lacks, without these."""


class GroupConfig(Frozen):
    name: str = Field(default="default", min_length=1, max_length=255)
    members: tuple[MemberConfig, ...] = ()
    metadata: dict[str, str] = Field(default_factory=dict)
