"""The bases of a registry: their directories, what can be adapted in them, an adapter's base.

It must not know files of artifacts or groups' rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stacked.core import Base, ModelId
from stacked.engine.adaptable import Asking
from stacked.errors import ParameterInvalid
from stacked.registry import DeploymentState, Model, ModelState, Query, Registry
from stacked.store import BaseModules, BaseStore

# The custom metadata with a fine-tune's base, as OCI's own tools write it.
FINE_TUNE_SOURCE = "fine_tune_source"


class CatalogueBases:
    """The bases of one registry: those in `store`, and those by reference."""

    def __init__(self, registry: Registry, store: BaseStore, engine: Mapping[str, Any]) -> None:
        """`engine`: vLLM's options, on some of which it depends what can be adapted."""
        self._registry = registry
        self.store = store
        self._engine = engine
        self._modules: dict[tuple[str, str], BaseModules] = {}

    def base(self, model_id: str, key: str) -> Base:
        """A base of the catalogue, ready for an engine. Raises RecordAbsent, AdapterAbsent."""
        model = self._registry.models.get(model_id)
        if model.kind != "base":
            raise ParameterInvalid(f"model {model_id} is no base")
        directory = self.base_directory(model)
        return Base(ModelId(model_id), key, str(directory), model.digest)

    def base_directory(self, model: Model) -> Path:
        """The directory of a base. Raises AdapterAbsent if it is gone from the store."""
        return Path(model.source) if model.source else self.store.path(model.digest)

    def base_for(self, model: Model) -> Model:
        """The base that an adapter is checked against: its metadata's, otherwise the served one.

        Raises ParameterInvalid without either.
        """
        named = model.metadata.get(FINE_TUNE_SOURCE)
        if named is not None and (found := self._registry.models.get_many([named]).get(named)):
            if found.kind == "base" and found.state is not ModelState.DELETED:
                return found
            raise ParameterInvalid(f"{FINE_TUNE_SOURCE} names model {named}, which is no base here")
        served = self._served_base()
        if served is not None:
            return served
        bases = self._registry.models.list(
            Query(limit=2), kind="base", state=ModelState.ACTIVE
        ).items
        if len(bases) != 1:
            raise ParameterInvalid(
                f"there are {'several bases' if bases else 'no bases'} here; say which one the "
                f"adapter is of: custom metadata {FINE_TUNE_SOURCE} with the base's model id"
            )
        return bases[0]

    def modules(self, base: Model) -> BaseModules:
        """What adapters of a base are checked against. Raises BaseNotFound, AdapterAbsent."""
        directory = self.base_directory(base)
        known = (base.digest, str(directory))
        if known not in self._modules:
            asking = Asking(directory, self._engine, self.store.root / "engine")
            self._modules[known] = replace(BaseModules.read(directory), engine=asking)
        return self._modules[known]

    def _served_base(self) -> Model | None:
        for deployment in self._registry.deployments.list().items:
            if deployment.state is not DeploymentState.DELETED and deployment.group_id is not None:
                base_id = self._registry.groups.get(deployment.group_id).base_model_id
                return self._registry.models.get(base_id) if base_id else None
        return None
