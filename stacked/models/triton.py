"""A Triton server that runs elsewhere, as the engine of a model group.

Models are pushed over its model-control API, each load under another name: no version of a name is
served while another is loaded. Its index is not read: it lists what is on its own disk, and calls
models ready that do not answer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import httpx

from stacked import errors
from stacked.core import Content, ModelFiles
from stacked.models.engine import ModelHandle, ModelsEngine
from stacked.models.tensors import Fault, parse
from stacked.models.triton_files import BACKENDS, LENGTH, PYTHON, pushed, runs_code, zeros
from stacked.models.workers import reported
from stacked.store.disk import usable, write_whole

# Each load holds up one of Triton's 8 threads for HTTP, and all connections of that thread.
_LOADS_AT_ONCE = 2
# Less than the loader's own patience.
_UNLOAD_SECONDS = 20.0
# How long requests are held back while a load begins.
_PAUSE_SECONDS = 0.1
_MOST_TEXT = 500


class TritonEngine(ModelsEngine):
    """The same for models in a Triton. Every call ends within a deadline."""

    takes_binary = True
    # Of all engines of this process: there are two while one replaces the other.
    _names: ClassVar[set[str]] = set()

    def __init__(
        self,
        give_up: Callable[[ModelHandle, str], None],
        url: str,
        owner: str,
        deadline_seconds: float,
    ) -> None:
        """`owner`: this server's at each start, and no other's."""
        super().__init__(give_up, deadline_seconds=deadline_seconds)
        self._url, self._owner = url.rstrip("/"), f"stacked-{owner}-"
        self._stem = f"{self._owner}{secrets.token_hex(4)}-"
        self._loads = asyncio.Semaphore(_LOADS_AT_ONCE)
        self._reloads: dict[int, asyncio.Task[None]] = {}
        self._passing = asyncio.Event()
        self._passing.set()
        self._under_way: set[asyncio.Task[httpx.Response]] = set()
        self._held_up = 0
        """Threads of Triton's that load or unload for this engine, or hang in it."""
        self._pooled, self._fresh = _client(64), _client(0)

    async def start(self) -> None:
        """Unload what an earlier process has left. Raises EngineStartFailed."""
        try:
            about = await self._http("", "GET")
            if "model_repository" not in _json(about.content).get("extensions", ()):
                raise errors.EngineStartFailed(f"{self._url} is not a Triton that loads models")
            # Unloading what is not there succeeds, where models may be unloaded at all.
            allowed = await self._control("unload", f"{self._stem}0", _UNLOAD_SECONDS)
            if allowed.status_code != 200:
                hint = "start it with --model-control-mode=explicit"
                raise errors.EngineStartFailed(f"{_said(allowed)}; {hint}")
            await self._sweep()
        except (errors.EngineDead, errors.EngineSilent) as error:
            raise errors.EngineStartFailed(str(error)) from error

    async def close(self) -> None:
        """Unload what can be unloaded. Idempotent."""
        for task in self._reloads.values():
            task.cancel()
        if not self._pooled.is_closed:
            self._names.difference_update(held.name for held in self._held.values())
            self._held.clear()
            with contextlib.suppress(errors.EngineError):
                await self._sweep()
        await self._pooled.aclose()
        await self._fresh.aclose()

    # -- a change of the group ---------------------------------------------------------------

    def fits(self, contents: Iterable[Content]) -> None:
        """The memory is another machine's."""

    async def _load(self, content: ModelFiles, name: str, number: int) -> ModelHandle:
        """A load that is given up may succeed later; the next change unloads it then."""
        self._names.add(name)
        try:
            described = await self._push(content, name)
        except BaseException:
            self._names.discard(name)
            raise
        return ModelHandle(content.digest, name, number, content, described)

    async def _push(self, content: ModelFiles, name: str) -> dict[str, Any]:
        """Have Triton load a model; what it then says of it."""
        refused = []
        for backend in [PYTHON] if runs_code(content) else BACKENDS[content.runtime]:
            body = pushed(content, backend, self._pause)
            try:
                async with self._loads:
                    loaded = await self._control("load", name, self._deadline, content=body)
                if loaded.status_code == 200:
                    return _json((await self._http(f"/models/{name}", "GET")).content)
            except errors.EngineSilent as error:
                raise errors.EngineLoadFailed(str(error), content.digest) from error
            except OSError as error:
                raise errors.StoreDamaged(f"{content.path} cannot be read: {error}") from error
            refused.append(_said(loaded))
        raise errors.EngineLoadFailed("; ".join(refused), content.digest)

    async def _pause(self) -> None:
        """Let a load begin between requests: its thread is often the one that serves them."""
        self._passing.clear()
        asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._passing.set)
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_PAUSE_SECONDS)

    async def _try_zeros(self, handle: ModelHandle) -> None:
        if (await self._http(f"/models/{handle.name}/ready", "GET")).status_code != 200:
            raise errors.CanaryFailed("Triton has loaded it, and does not have it ready")
        if not runs_code(handle.content):
            await self.infer(handle, *zeros(handle.report))

    async def discard(self, *handles: ModelHandle) -> None:
        """Unload these. Idempotent. Raises EngineError if Triton still has one of them."""
        held = [each for each in handles if each.number in self._held]
        for each in held:
            if reload := self._reloads.pop(each.number, None):
                reload.cancel()
        left = await self._unload(each.name for each in held)
        for each in held:
            if each.name not in left:
                self._held.pop(each.number, None)
        if left:
            raise errors.EngineError(f"Triton has not unloaded {', '.join(sorted(left))}")

    @contextlib.asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[None]:
        """Few models are loaded at once."""
        await self._sweep()
        yield

    async def _sweep(self) -> None:
        """Unload what nobody has: an earlier process's models, and loads that took too long."""
        stats = await self._http("/models/stats", "GET")  # of all that are loaded, pushed or not
        names = {str(row["name"]) for row in _json(stats.content).get("model_stats", ())}
        await self._unload(each for each in names - self._names if each.startswith(self._owner))

    async def _unload(self, names: Iterable[str]) -> set[str]:
        """Those that Triton still has after a while; one that hangs holds up no other."""

        async def unload(name: str) -> set[str]:
            with contextlib.suppress(errors.EngineError):
                if (await self._control("unload", name, _UNLOAD_SECONDS)).status_code == 200:
                    self._names.discard(name)
                    return set()
            return {name}

        return set().union(*await asyncio.gather(*map(unload, names)))

    async def _load_again(self, handle: ModelHandle) -> None:
        """After Triton was started again. What fails otherwise is tried at the next request."""
        with contextlib.suppress(errors.EngineDead):
            try:
                await self._push(handle.content, handle.name)
            except errors.EngineLoadFailed as error:
                self._give_up(handle, str(error))

    # -- requests ------------------------------------------------------------------------------

    def ready(self, handle: ModelHandle) -> bool:
        """Whether Triton has it, as far as is known."""
        reload = self._reloads.get(handle.number)
        return handle.number in self._held and (reload is None or reload.done())

    async def infer(
        self, handle: ModelHandle, body: bytes, headers: Mapping[str, str] = {}, model: str = ""
    ) -> tuple[bytes, Mapping[str, str]]:
        """See `ModelsEngine.infer`; an answer has the name that the model has in Triton."""
        if runs_code(handle.content):
            return await self._predict(handle, body, headers.get("content-type", "")), {}
        answer = await self._infer(handle, body, _passed(headers))
        head = answer.content[: int(answer.headers.get(LENGTH, len(answer.content)))]
        if b"NaN" in head or b"Infinity" in head:  # which is not JSON, unless it is in a text
            try:
                await asyncio.to_thread(parse, head)
            except Fault as error:
                raise errors.ModelAnswerInvalid("it answers with NaN or infinity") from error
        return answer.content, _passed(answer.headers)

    async def _predict(self, handle: ModelHandle, body: bytes, kind: str) -> bytes:
        """See `triton_score`."""
        call = {"name": "call", "datatype": "BYTES", "shape": [2]}
        call["data"] = [kind, base64.b64encode(body).decode()]
        answer = await self._infer(handle, json.dumps({"inputs": [call]}).encode(), {})
        fault, text = json.loads(answer.content)["outputs"][0]["data"]
        if fault:
            raise reported(fault, text)
        return bytes(text, "utf-8")

    async def _infer(
        self, handle: ModelHandle, body: bytes, headers: Mapping[str, str]
    ) -> httpx.Response:
        if not self.ready(handle):
            raise errors.NotReady("this model is being loaded into Triton again")
        await self._passing.wait()
        path = f"/models/{handle.name}/infer"
        request = asyncio.create_task(self._http(path, content=body, headers=headers))
        self._under_way.add(request)
        request.add_done_callback(self._under_way.discard)
        try:
            answer = await request
        except errors.EngineSilent as error:
            raise errors.ModelTooSlow(str(error)) from error
        if (status := answer.status_code) == 200:
            return answer
        if status == 404:
            if self.ready(handle):
                self._reloads[handle.number] = asyncio.create_task(self._load_again(handle))
            raise errors.EngineDead("Triton no longer has this model, and loads it again")
        said = _said(answer)
        if status < 500:
            raise errors.ParameterInvalid(said)
        if runs_code(handle.content):
            # What predict raises is an answer: the process has ended, and Triton starts no other.
            self._give_up(handle, said)
        elif LENGTH not in headers and "inputs" not in await asyncio.to_thread(_json, body):
            raise errors.BodyInvalid(said)  # for Triton a server's error too
        raise errors.ModelFailed(said)

    # -- calls -------------------------------------------------------------------------------

    async def _control(
        self, what: str, name: str, seconds: float, **request: Any
    ) -> httpx.Response:
        self._held_up += 1
        path = f"/repository/models/{name}/{what}"
        answer = await self._http(path, seconds=seconds, **request)
        self._held_up -= 1  # without an answer, the thread may hang for ever
        return answer

    async def _http(
        self, path: str, method: str = "POST", seconds: float | None = None, **request: Any
    ) -> httpx.Response:
        """Raises EngineSilent, EngineDead."""
        # A connection that is open may be of a thread that is held up; a new one never is.
        client, seconds = self._fresh if self._held_up else self._pooled, seconds or self._deadline
        try:
            async with asyncio.timeout(seconds):
                return await client.request(method, f"{self._url}/v2{path}", **request)
        except TimeoutError as error:
            raise errors.EngineSilent(f"no answer from Triton in {seconds:g} s ({path})") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise errors.EngineDead(f"Triton at {self._url} does not answer: {reason}") from error


def owner_in(directory: Path) -> str:
    """What the server of this directory is called in Triton: made once. Raises StoreUnusable."""
    file = directory / "triton-owner"
    with usable(directory, "its name in Triton"):
        if not file.exists():
            write_whole(file, secrets.token_hex(6).encode())
        return file.read_text(encoding="ascii")


def _client(keepalive: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=keepalive)
    return httpx.AsyncClient(timeout=None, limits=limits, headers={"accept-encoding": "identity"})


def _json(body: bytes) -> dict[str, Any]:
    """A JSON object, {} for anything else."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(tree := json.loads(body), dict):
            return tree
    return {}


def _said(answer: httpx.Response) -> str:
    said = str(_json(answer.content).get("error") or answer.text).strip()
    return f"Triton: {said[:_MOST_TEXT]} (status {answer.status_code})"


def _passed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in ("content-type", LENGTH) if name in headers}
