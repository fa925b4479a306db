"""The serving of models that are no adapters: their engine, their live group, and requests.

It never looks into a request's body; what runs the models does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from stacked.callers import caller_of
from stacked.config import ControlConfig, Design
from stacked.core import Digest
from stacked.engine.loaded import Resident
from stacked.engine.machine import cards
from stacked.errors import (
    EncodingUnsupported,
    ExternalServerIncorrectState,
    NotAuthorizedOrNotFound,
    NotReady,
)
from stacked.groups.routing import Route, Routing
from stacked.live import Live
from stacked.loader import Loader
from stacked.models.engine import ModelHandle, ModelsEngine
from stacked.serving import (
    NO_VLLM,
    Admission,
    Commit,
    Prepared,
    Receive,
    Report,
    Scope,
    Send,
    Serving,
    raise_first,
)
from stacked.serving.names import names_of, unit_of
from stacked.serving.targets import Target
from stacked.steps import Counted, Progress, Start

logger = logging.getLogger("stacked.serving")

_TYPE, _BINARY = "content-type", "inference-header-content-length"


class ModelsServing(Serving):
    """Models without vLLM; see `stacked.serving.Serving`. Their engine heals itself."""

    cards: int | None = None  # a Triton server's are not known

    def __init__(self, prepared: Prepared, config: ControlConfig, directory: Path) -> None:
        self.settings, models = prepared.settings, config.models
        self.engine: ModelsEngine
        if models.triton:
            # Here, as its client takes a third of a second to import.
            from stacked.models.triton import TritonEngine, owner_in

            owner, deadline = owner_in(directory), models.deadline_seconds
            self.engine = TritonEngine(self._given_up, models.triton, owner, deadline)
        else:
            self.engine = ModelsEngine(
                self._given_up,
                processes=prepared.settings.processes,
                user=models.user,
                deadline_seconds=models.deadline_seconds,
            )
        nobody = Routing[ModelHandle].of(None, (), {}, 0)
        self.live = Live(self.engine, nobody, drain_seconds=config.server.drain_seconds)

    @classmethod
    async def start(
        cls,
        prepared: Prepared,
        commit: Commit,
        config: ControlConfig,
        directory: Path,
        tell: Progress,
    ) -> ModelsServing:
        """Start the engine and load the group, all or nothing. `commit` is called last.

        `directory`: the store's, which has this server's name in Triton.

        Raises what that raises, GroupImpossible, EngineStartFailed, EngineLoadFailed, CanaryFailed.
        """
        serving = await asyncio.to_thread(cls, prepared, config, directory)
        serving.cards = None if config.models.triton else await asyncio.to_thread(cards)
        try:
            Design.of(prepared.group.metadata).check_cards(serving.cards)
            await serving.engine.start()
            handles = await serving._load(prepared, tell)
            generation = await commit()
        except BaseException:
            await serving.close()
            raise
        prepared.begin(serving.live, handles, generation)
        return serving

    async def _load(self, prepared: Prepared, tell: Progress) -> Mapping[Digest, ModelHandle]:
        group = prepared.loaded
        contents = [*group.contents().values()]
        self.engine.fits(contents)
        handles: dict[Digest, ModelHandle] = {}
        count = Counted(tell, Start.LOAD, len(contents))
        raise_first(group, await Loader(self.engine).stage(contents, handles, count))
        tell.step(Start.VERIFY)
        raise_first(group, await self.engine.verify(handles, lambda done: None))
        return handles

    def _given_up(self, handle: ModelHandle, reason: str) -> None:
        why = f"{reason}. Load it again (POST /models/…), or deploy a group, to try it again"
        logger.error("model %s is quarantined: %s", handle.name, why)
        self.live.withhold(handle, why)

    # -- requests ---------------------------------------------------------------------------

    def admit(
        self, target: Target, scope: Scope, body: bytes, end: Callable[..., object]
    ) -> Admission:
        """See `Serving.admit`. Raises NotAuthorizedOrNotFound for what only vLLM has."""
        if target.path is not None:
            raise NotAuthorizedOrNotFound(f"there is no {target.path}: {NO_VLLM}")
        if target.stream:
            raise ExternalServerIncorrectState(
                "the models of this deployment answer whole; send the request to /predict"
            )
        named = ((name.decode("latin-1").lower(), value) for name, value in scope["headers"])
        passed = {
            name: value.decode("latin-1") for name, value in named if name in (_TYPE, _BINARY)
        }
        is_form = passed.get(_TYPE, "").lower().startswith("multipart/")
        if is_form or (_BINARY in passed and not self.engine.takes_binary):
            raise EncodingUnsupported(
                "a body of binary tensors or a form is not taken; send JSON (binary_data=False in "
                "tritonclient), or for a score.py bytes as application/octet-stream"
            )
        names = names_of(target.model, scope["headers"], {})
        unit = partial(unit_of, scope=scope, tree={})
        route, lease = self.live.admit(names, end, caller_of(scope).keys, unit)
        return Admission(route, lease, partial(self._answer, route, body, passed), 1)

    async def _answer(
        self,
        route: Route[ModelHandle],
        body: bytes,
        passed: Mapping[str, str],
        receive: Receive,
        send: Send,
        report: Report,
    ) -> None:
        """Answer, unless the client leaves before, or the request is ended."""
        assert route.handle is not None, "there is no base"
        work = self.engine.infer(route.handle, body, passed, route.label)
        answering, leaving = asyncio.ensure_future(work), asyncio.ensure_future(receive())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                return
            answer, given = answering.result()
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
        named = {_TYPE: "application/json", **given, "content-length": str(len(answer))}
        headers = [(name.encode(), value.encode()) for name, value in named.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def check_ready(self, route: Route[ModelHandle]) -> None:
        """See `Serving.check_ready`."""
        if route.handle is None or not self.engine.ready(route.handle):
            raise NotReady(f"the process of model {route.label!r} is starting again")

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `Serving.app`: there is nothing but models."""
        raise NotAuthorizedOrNotFound(f"there is no {scope['path']}: {NO_VLLM}")

    async def resident(self) -> Resident:
        """See `Serving.resident`."""
        ready = [h for h in self.live.routing.handles.values() if self.engine.ready(h)]
        there = frozenset(handle.number for handle in ready)
        return Resident(frozenset(), there, (), {handle.number: handle.bytes for handle in ready})

    async def close(self) -> None:
        """End the engine. Closing twice is allowed."""
        self.live.close()
        await self.engine.close()
