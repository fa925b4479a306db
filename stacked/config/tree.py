"""The whole file."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from stacked.config.fields import Frozen
from stacked.config.fleet import FleetConfig
from stacked.config.group import BaseConfig, GroupConfig
from stacked.config.models import ModelsConfig
from stacked.config.ray import RayConfig
from stacked.config.retention import RetentionConfig
from stacked.config.server import ServerConfig
from stacked.config.storage import StorageConfig
from stacked.config.supervision import SupervisionConfig
from stacked.config.trials import ExperimentsConfig
from stacked.errors import GroupInvalid


class ControlConfig(Frozen):
    """A file without a base: a server that starts with nothing deployed, or with models.

    `group.name` names its records, `engine` holds defaults for what is deployed over HTTP.
    """

    group: GroupConfig = GroupConfig()
    engine: dict[str, Any] = Field(default_factory=dict)
    server: ServerConfig = ServerConfig()
    models: ModelsConfig = ModelsConfig()
    storage: StorageConfig = StorageConfig()
    retention: RetentionConfig = RetentionConfig()
    supervision: SupervisionConfig = SupervisionConfig()
    experiments: ExperimentsConfig = ExperimentsConfig()
    fleet: FleetConfig | None = None
    ray: RayConfig = RayConfig()
    """None: this server is one alone."""

    @model_validator(mode="after")
    def _group_is_whole(self) -> ControlConfig:
        alone, has_base = self.group.kind != "STACKED", isinstance(self, Config)
        if alone and has_base:
            raise ValueError(f"a {self.group.kind} group has no base; leave base or group.kind out")
        if self.group.members and not (alone or has_base):
            raise ValueError(
                "group.members needs a base; set base.model, leave the members out, or set "
                "group.kind: HETEROGENEOUS for models that need none"
            )
        keys = [member.key for member in self.group.members]
        try:
            base = [self.base.key] if isinstance(self, Config) else []
            self.group.check([*keys, *base], self.group.kind, "group.")
        except GroupInvalid as error:
            raise ValueError(str(error)) from error
        return self


class Config(ControlConfig):
    """The whole file. `engine` holds vLLM's own option names and is checked by vLLM's parser."""

    base: BaseConfig
