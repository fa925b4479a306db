"""The serving of models that are no adapters: worker processes, their live group, and requests.

It never looks into a request's body; the processes do.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from stacked.callers import caller_of
from stacked.config import ModelsConfig
from stacked.core import Digest
from stacked.engine.loaded import Resident
from stacked.engine.processes import Ended
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
    raise_first,
)
from stacked.serving.names import names_of
from stacked.serving.targets import Target
from stacked.steps import Counted, Progress, Start

if TYPE_CHECKING:
    from stacked.models.triton import TritonEngine

logger = logging.getLogger("stacked.serving")

# What a body cannot be: binary tensors of the Open Inference Protocol, and forms.
_BINARY = b"inference-header-content-length"
_FORM = "multipart/"


class ModelsServing:
    """Models in worker processes; see `stacked.serving.Serving`. Its engine heals itself."""

    dead = False
    in_flight: frozenset[Digest | None] | None = None
    suspects: frozenset[Digest] = frozenset()

    def __init__(
        self,
        prepared: Prepared,
        config: ModelsConfig,
        drain_seconds: float,
        triton: tuple[str, str] | None,
    ) -> None:
        self.settings = prepared.settings
        self.engine: ModelsEngine | TritonEngine
        if triton is not None:
            # Here, as its client takes a third of a second to import.
            from stacked.models.triton import TritonEngine

            self.engine = TritonEngine(self._given_up, *triton, config.deadline_seconds)
        else:
            self.engine = ModelsEngine(
                self._given_up,
                processes=prepared.settings.processes,
                user=config.user,
                deadline_seconds=config.deadline_seconds,
            )
        nobody = Routing[ModelHandle].of(None, (), {}, 0)
        self.live = Live(self.engine, nobody, drain_seconds=drain_seconds)

    @classmethod
    async def start(
        cls,
        prepared: Prepared,
        commit: Commit,
        tell: Progress,
        config: ModelsConfig,
        *,
        drain_seconds: float,
        triton: tuple[str, str] | None = None,
    ) -> ModelsServing:
        """Start processes and load the group, all or nothing. `commit` is called last.

        `triton`: the address of a server that is used in place of processes, and this server's
        name in it.

        Raises what that raises, GroupImpossible, EngineStartFailed, EngineLoadFailed, CanaryFailed.
        """
        serving = cls(prepared, config, drain_seconds, triton)
        try:
            await serving.engine.start()
            handles = await serving._load(prepared, tell)
            generation = await commit()
        except BaseException:
            await serving.close()
            raise
        members, out = prepared.loaded.members, prepared.quarantined
        routing = Routing.of(None, members, handles, generation, withheld=out)
        serving.live.begin(routing, prepared.group.members)
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
        headers = {name.lower(): value for name, value in scope["headers"]}
        kind = headers.get(b"content-type", b"").decode("latin-1").lower()
        binary = headers.get(_BINARY, b"").decode("latin-1")
        if (binary and not self.engine.takes_binary) or kind.startswith(_FORM):
            raise EncodingUnsupported(
                "a body of binary tensors or a form is not taken; send JSON (binary_data=False in "
                "tritonclient), or for a score.py bytes as application/octet-stream"
            )
        names = names_of(target.model, scope["headers"], {})
        route, lease = self.live.admit(names, end, caller_of(scope).keys)
        return Admission(route, lease, partial(self._answer, route, body, kind, binary), 1)

    async def _answer(
        self,
        route: Route[ModelHandle],
        body: bytes,
        kind: str,
        binary: str,
        receive: Receive,
        send: Send,
        report: Report,
    ) -> None:
        """Answer, unless the client leaves before, or the request is ended."""
        assert route.handle is not None, "there is no base"
        passed = {"content-type": kind} | ({_BINARY.decode(): binary} if binary else {})
        work = self.engine.exchange(route.handle, body, passed, route.label)
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
        length = str(len(answer)).encode()
        named = {"content-type": "application/json", **given}
        headers = [(name.encode(), value.encode()) for name, value in named.items()]
        headers.append((b"content-length", length))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def metadata(self, route: Route[ModelHandle]) -> Any:
        """What the Open Inference Protocol says of a model."""
        assert route.handle is not None, "there is no base"
        return json.loads(self.engine.metadata(route.handle, route.label))

    def check_ready(self, route: Route[ModelHandle]) -> None:
        """See `Serving.check_ready`."""
        if route.handle is None or not self.engine.ready(route.handle):
            raise NotReady(f"the process of model {route.label!r} is starting again")

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `Serving.app`: there is nothing but models."""
        raise NotAuthorizedOrNotFound(f"there is no {scope['path']}: {NO_VLLM}")

    # -- the engine -------------------------------------------------------------------------

    def check_alive(self) -> None:
        """Processes that end are started again by the engine itself."""

    async def step(self) -> None:
        """See `Serving.step`: calls are bounded one by one."""

    def kill(self) -> None:
        """There is no one process to end."""

    async def bury(self) -> Ended:
        """See `Serving.bury`."""
        await self.close()
        return Ended()

    async def resident(self) -> Resident:
        """See `Serving.resident`."""
        ready = [h for h in self.live.routing.handles.values() if self.engine.ready(h)]
        there = frozenset(handle.number for handle in ready)
        sizes = {h.number: self.engine.resident(h) for h in ready}
        return Resident(frozenset(), there, (), sizes)

    async def close(self) -> None:
        """End the processes. Closing twice is allowed."""
        self.live.close()
        await self.engine.close()
