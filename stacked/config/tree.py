"""The whole file."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from stacked.config.fields import Frozen
from stacked.config.group import BaseConfig, GroupConfig
from stacked.config.models import ModelsConfig
from stacked.config.retention import RetentionConfig
from stacked.config.server import ServerConfig
from stacked.config.supervision import SupervisionConfig


class ControlConfig(Frozen):
    """A file without a base: a server that starts with nothing deployed.

    `group.name` names its records, `engine` holds defaults for what is deployed over HTTP.
    """

    group: GroupConfig = GroupConfig()
    engine: dict[str, Any] = Field(default_factory=dict)
    server: ServerConfig = ServerConfig()
    models: ModelsConfig = ModelsConfig()
    retention: RetentionConfig = RetentionConfig()
    supervision: SupervisionConfig = SupervisionConfig()

    @model_validator(mode="after")
    def _members_have_a_base(self) -> ControlConfig:
        if self.group.members and not isinstance(self, Config):
            raise ValueError("group.members needs a base; set base.model, or leave the members out")
        return self


class Config(ControlConfig):
    """The whole file. `engine` holds vLLM's own option names and is checked by vLLM's parser."""

    base: BaseConfig
