"""Loading and removing models one by one, whatever the group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stacked.catalogue import Catalogue
from stacked.config import ServerConfig
from stacked.core import Adapter, Content, Member, ModelFiles, ModelId, model_id_of
from stacked.errors import NotAllowed
from stacked.groups.routing import Route
from stacked.serving import Serving
from stacked.serving.vllm import VllmServing
from stacked.store import AdapterStore


class RuntimeUpdates:
    """Changes of what one engine serves. Raises NotAllowed where its deployment allows none."""

    def __init__(
        self,
        serving: Serving,
        store: AdapterStore,
        catalogue: Catalogue | None,
        server: ServerConfig,
        lifted: Callable[[], None],
    ) -> None:
        """`lifted` is called when a quarantined model is served again."""
        if not serving.settings.runtime_updates:
            raise NotAllowed(
                "loading and removing models one by one is off in this deployment "
                "(VLLM_ALLOW_RUNTIME_LORA_UPDATING); update its group"
            )
        self._serving = serving
        self._store = store
        self._catalogue = catalogue
        self._server = server
        self._lifted = lifted

    async def load(self, source: str, *, key: str | None, model_id: ModelId | None) -> Route[Any]:
        """Check an adapter, load it, and serve it under `key` and its model id.

        `source` must be under the configured roots, or remote where that is allowed. Asking again
        for what is already there is answered with it. Raises AdapterError, KeyInUse, EngineError.
        """
        with self._store.pinned():
            adapter = await asyncio.to_thread(self._add, source)
            member = Member(model_id or model_id_of(adapter.digest), adapter, key)
            return await self._serve(member)

    async def load_known(self, name: str, key: str | None) -> Route[Any] | None:
        """Serve again what `unload` removed of the group, or a model of the catalogue by its id.

        None where `name` is neither. Raises AdapterError, RecordConflict, KeyInUse, EngineError.
        """
        removed = self._serving.live.removed
        gone = [m for m in removed if name in (m.key, m.model_id) and key in (None, m.key)]
        with self._store.pinned():
            if not gone and self._catalogue is not None:
                found = await asyncio.to_thread(self._find, self._catalogue, name)
                gone = [Member(ModelId(name), found, key)] if found else []
            routes = [await self._serve(member) for member in gone]
        return routes[0] if routes else None

    def _find(self, catalogue: Catalogue, id: str) -> Content | None:
        serving = self._serving
        kind = "adapter" if isinstance(serving, VllmServing) else "model"
        digest = catalogue.loadable(id, kind)
        if digest is None:
            return None
        if isinstance(serving, VllmServing):
            most = serving.plan.max_rank
            return self._store.claim(digest, base=serving.modules, max_rank=most)
        contents = [member.content for member in serving.live.routing.members]
        codes = (each.code for each in contents if isinstance(each, ModelFiles) and each.files)
        return catalogue.models.get(digest, next(codes, None), f"model {id}")

    async def _serve(self, member: Member) -> Route[Any]:
        live = self._serving.live
        before = live.quarantined
        route = await live.add(member)
        if live.quarantined != before:
            self._lifted()
        return route

    async def unload(self, name: str) -> bool:
        """Stop serving a key or model id; free its adapter when the last request has ended.

        False when requests still ran after the drain time; see `Live.remove`. Raises KeyUnknown.
        """
        return await self._serving.live.remove(name)

    def _add(self, source: str) -> Adapter:
        server, serving = self._server, self._serving
        if not isinstance(serving, VllmServing):
            raise NotAllowed(
                "adapters are loaded by vLLM, and what is deployed here are models without it: "
                "those of its group are loaded by key or id, others with an update of the group"
            )
        return self._store.add(
            source,
            base=serving.modules,
            max_rank=serving.plan.max_rank,
            allowed_roots=[Path(root) for root in server.adapter_roots],
            remote=server.remote_sources,
            foreign_tokens=server.foreign_tokens,
        )
