"""A Triton server that runs elsewhere, as the engine of a model group.

Models are pushed over its model-control API, each load under another name: no version of a name is
served while another is loaded. Its index is not read: it lists what is on its own disk, and calls
models ready that do not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx

from stacked import errors
from stacked.core import Content, Digest, ModelFiles, short
from stacked.errors import (
    EngineDead,
    EngineError,
    EngineLoadFailed,
    EngineSilent,
    EngineStartFailed,
)
from stacked.models.engine import ModelHandle
from stacked.models.runtimes import EXAMPLE
from stacked.models.tensors import Fault, parse
from stacked.models.triton_files import BACKENDS, LENGTH, PYTHON, pushed, runs_code, zeros
from stacked.models.workers import reported

# Each load holds up one of Triton's 8 threads for HTTP, and all connections of that thread.
_LOADS_AT_ONCE = 2
# Less than the loader's own patience.
_UNLOAD_SECONDS = 20.0
# How long requests are held back while a load begins.
_PAUSE_SECONDS = 0.1
_MOST_TEXT = 500
_CALL = (
    b'{"inputs":[{"name":"call","datatype":"BYTES","shape":[2],'
    b'"parameters":{"binary_data_size":%d}}],"parameters":{"binary_data_output":true}}'
)


@dataclass(frozen=True, slots=True)
class _Held:
    handle: ModelHandle
    name: str
    described: dict[str, Any]


class TritonEngine:
    """Triton's `stacked.loader.GroupEngine`. Every call ends within a deadline."""

    takes_binary = True
    memory_bytes = 0  # of processes on this machine: there are none
    # How names of this process's engines begin: there are two while one replaces the other.
    _open: ClassVar[set[str]] = set()

    def __init__(
        self,
        give_up: Callable[[ModelHandle, str], None],
        url: str,
        owner: str,
        deadline_seconds: float,
    ) -> None:
        """`give_up`: see `ModelsEngine`. `owner`: this server's at each start, and no other's."""
        self._give_up, self._url, self._deadline = give_up, url.rstrip("/"), deadline_seconds
        self._owner = f"stacked-{owner}-"
        self._stem = f"{self._owner}{secrets.token_hex(4)}-"
        self._numbers, self._loads = itertools.count(1), asyncio.Semaphore(_LOADS_AT_ONCE)
        self._held: dict[int, _Held] = {}
        self._coming: set[str] = set()
        self._reloads: dict[int, asyncio.Task[None]] = {}
        self._passing, self._idle, self._under_way = asyncio.Event(), asyncio.Event(), 0
        self._passing.set()
        self._idle.set()
        self._held_up = 0
        """Threads of Triton's that load or unload for this engine, or hang in it."""
        self._pooled, self._fresh = _client(64), _client(0)

    async def start(self) -> None:
        """Unload what an earlier process has left. Raises EngineStartFailed."""
        try:
            about = await self._call("", "GET")
            if "model_repository" not in _json(about.content).get("extensions", ()):
                raise EngineStartFailed(f"{self._url} is not a Triton that loads models")
            # Unloading what is not there succeeds, where models may be unloaded at all.
            allowed = await self._control("unload", f"{self._stem}0", _UNLOAD_SECONDS)
            if allowed.status_code != 200:
                hint = "start it with --model-control-mode=explicit"
                raise EngineStartFailed(f"{_said(allowed)}; {hint}")
            self._open.add(self._stem)
            await self._sweep()
        except (EngineDead, EngineSilent) as error:
            raise EngineStartFailed(str(error)) from error

    async def close(self) -> None:
        """Unload what can be unloaded. Closing twice is allowed."""
        for task in self._reloads.values():
            task.cancel()
        if self._stem in self._open:
            self._held.clear()
            with contextlib.suppress(EngineError):
                await self._sweep()
            self._open.discard(self._stem)
        await self._pooled.aclose()
        await self._fresh.aclose()

    # -- a change of the group ---------------------------------------------------------------

    def check(self, content: Content) -> None:
        """Triton itself says what it cannot load."""

    def fits(self, contents: Iterable[Content]) -> None:
        """The memory is another machine's."""

    async def stage(self, content: Content) -> ModelHandle:
        """Push a model and have it loaded. Raises EngineLoadFailed, EngineDead.

        A load that is given up may succeed later; the next change of the group unloads it then.
        """
        assert isinstance(content, ModelFiles), "the members of these groups are models"
        number = next(self._numbers)
        handle = ModelHandle(content.digest, f"{content.digest}.{number}", number, content)
        self._held[number] = await self._load(handle)
        return handle

    async def _load(self, handle: ModelHandle) -> _Held:
        content, refused = handle.content, []
        for backend in [PYTHON] if runs_code(content) else BACKENDS[content.runtime]:
            name = f"{self._stem}{short(content.digest)}-{next(self._numbers)}"
            body = pushed(content, backend, self._pause)
            self._coming.add(name)
            try:
                async with self._loads:
                    loaded = await self._control("load", name, self._deadline, content=body)
                if loaded.status_code == 200:
                    described = await self._call(f"/models/{name}", "GET")
                    return _Held(handle, name, _json(described.content))
            except EngineSilent as error:
                raise EngineLoadFailed(str(error), content.digest) from error
            except Fault as error:
                raise reported(error.code, str(error)) from error
            except OSError as error:
                raise errors.StoreDamaged(f"{content.path} cannot be read: {error}") from error
            finally:
                self._coming.discard(name)
            refused.append(_said(loaded))
        raise EngineLoadFailed("; ".join(refused), content.digest)

    async def _pause(self) -> None:
        """Let a load begin between requests: its thread is often the one that serves them."""
        self._passing.clear()
        asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._passing.set)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), _PAUSE_SECONDS)

    async def adopt(self, handle: ModelHandle) -> None:
        """A staged model can answer."""

    async def activate(self, handle: ModelHandle) -> bool:
        """A staged model is where it computes."""
        return True

    async def verify(
        self, staged: Mapping[Digest, ModelHandle], done: Callable[[int], None]
    ) -> Mapping[Digest, errors.StackedError]:
        """Which of these do not answer their example, or zeros of their shapes; and why."""
        failed: dict[Digest, errors.StackedError] = {}
        for at, (digest, handle) in enumerate(staged.items(), start=1):
            try:
                await self._try(handle)
            except errors.StackedError as error:
                failed[digest] = errors.CanaryFailed(str(error))
            done(at)
        return failed

    async def _try(self, handle: ModelHandle) -> None:
        path, held = handle.content.path, self._held[handle.number]
        if (await self._call(f"/models/{held.name}/ready", "GET")).status_code != 200:
            raise errors.CanaryFailed("Triton has loaded it, and does not have it ready")
        example = (path if path.is_dir() else path.parent) / EXAMPLE
        if example.is_file():
            await self.infer(handle, example.read_bytes(), "application/json")
        elif not runs_code(handle.content):
            await self.exchange(handle, *zeros(held.described))

    async def discard(self, *handles: ModelHandle) -> None:
        """Unload these. Idempotent. Raises EngineError if Triton still has one of them."""
        held = [self._held[each.number] for each in handles if each.number in self._held]
        for each in held:
            if reload := self._reloads.pop(each.handle.number, None):
                reload.cancel()
        left = await self._unload(each.name for each in held)
        for each in held:
            if each.name not in left:
                self._held.pop(each.handle.number, None)
        if left:
            raise EngineError(f"Triton has not unloaded {', '.join(sorted(left))}")

    async def remove(self, *handles: ModelHandle) -> None:
        """Unload these, as `discard` does."""
        await self.discard(*handles)

    @contextlib.asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[None]:
        """Few models are loaded at once."""
        await self._sweep()
        yield

    async def _sweep(self) -> None:
        """Unload what nobody has: an earlier process's models, and loads that took too long."""
        others = tuple(self._open - {self._stem})
        stats = await self._call("/models/stats", "GET")  # of all that are loaded, pushed or not
        names = {str(row["name"]) for row in _json(stats.content).get("model_stats", ())}
        names -= self._coming | {held.name for held in self._held.values()}
        ours = (name for name in names if name.startswith(self._owner))
        await self._unload(name for name in ours if not name.startswith(others))

    async def _unload(self, names: Iterable[str]) -> set[str]:
        """Those that Triton still has after a while; one that hangs holds up no other."""

        async def unload(name: str) -> set[str]:
            with contextlib.suppress(EngineError):
                if (await self._control("unload", name, _UNLOAD_SECONDS)).status_code == 200:
                    return set()
            return {name}

        return set().union(*await asyncio.gather(*map(unload, names)))

    async def _load_again(self, handle: ModelHandle) -> None:
        """After Triton was started again. What fails otherwise is tried at the next request."""
        with contextlib.suppress(EngineDead):
            try:
                self._held[handle.number] = await self._load(handle)
            except EngineLoadFailed as error:
                self._give_up(handle, str(error))

    # -- requests ------------------------------------------------------------------------------

    def ready(self, handle: ModelHandle) -> bool:
        """Whether Triton has it, as far as is known."""
        reload = self._reloads.get(handle.number)
        return handle.number in self._held and (reload is None or reload.done())

    def resident(self, handle: ModelHandle) -> int:
        """Its memory is another machine's."""
        return 0

    def metadata(self, handle: ModelHandle, model: str = "") -> bytes:
        """See `ModelsEngine.metadata`."""
        named = {"name": model, "versions": [short(handle.digest)]}
        return json.dumps({**self._held[handle.number].described, **named}).encode()

    async def infer(
        self, handle: ModelHandle, body: bytes, content_type: str, model: str = ""
    ) -> bytes:
        """See `ModelsEngine.infer`; an answer has the name that the model has in Triton."""
        return (await self.exchange(handle, body, {"content-type": content_type}))[0]

    async def exchange(
        self, handle: ModelHandle, body: bytes, headers: Mapping[str, str], model: str = ""
    ) -> tuple[bytes, Mapping[str, str]]:
        """`infer` with the headers of the binary tensor extension, both ways."""
        if runs_code(handle.content):
            kind = headers.get("content-type", "").encode()
            return await self._predict(handle, _text(kind) + _text(body)), {}
        answer = await self._infer(handle, body, _passed(headers))
        head = answer.content[: int(answer.headers.get(LENGTH, len(answer.content)))]
        if b"NaN" in head or b"Infinity" in head:  # which is not JSON, unless it is in a text
            try:
                await asyncio.to_thread(parse, head)
            except Fault as error:
                raise errors.ModelAnswerInvalid("it answers with NaN or infinity") from error
        return answer.content, _passed(answer.headers)

    async def _predict(self, handle: ModelHandle, call: bytes) -> bytes:
        """`call`: what the body is, and the body."""
        head = _CALL % len(call)
        answer = await self._infer(handle, head + call, {LENGTH: str(len(head))})
        texts = answer.content[int(answer.headers[LENGTH]) :]
        end = 4 + int.from_bytes(texts[:4], "little")
        if fault := texts[4:end]:
            raise reported(fault.decode(), texts[end + 4 :].decode())
        return texts[end + 4 :]

    async def _infer(
        self, handle: ModelHandle, body: bytes, headers: Mapping[str, str]
    ) -> httpx.Response:
        if not self.ready(handle):
            raise errors.NotReady("this model is being loaded into Triton again")
        path = f"/models/{self._held[handle.number].name}/infer"
        await self._passing.wait()
        self._under_way += 1
        self._idle.clear()
        try:
            answer = await self._call(path, content=body, headers=headers)
        except EngineSilent as error:
            raise errors.ModelTooSlow(str(error)) from error
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        if (status := answer.status_code) == 200:
            return answer
        if status == 404:
            if self.ready(handle):
                self._reloads[handle.number] = asyncio.create_task(self._load_again(handle))
            raise EngineDead("Triton no longer has this model, and loads it again")
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
        answer = await self._call(path, seconds=seconds, **request)
        self._held_up -= 1  # without an answer, the thread may hang for ever
        return answer

    async def _call(
        self, path: str, method: str = "POST", seconds: float | None = None, **request: Any
    ) -> httpx.Response:
        """Raises EngineSilent, EngineDead."""
        # A connection that is open may be of a thread that is held up; a new one never is.
        client, seconds = self._fresh if self._held_up else self._pooled, seconds or self._deadline
        try:
            async with asyncio.timeout(seconds):
                return await client.request(method, f"{self._url}/v2{path}", **request)
        except TimeoutError as error:
            raise EngineSilent(f"no answer from Triton in {seconds:g} s ({path})") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise EngineDead(f"Triton at {self._url} does not answer: {reason}") from error


def owner_in(directory: Path) -> str:
    """What the server of this directory is called in Triton: made once. Raises StoreUnusable."""
    file = directory / "triton-owner"
    try:
        if not file.exists():
            made = file.with_suffix(".new")
            made.write_text(secrets.token_hex(6), encoding="ascii")
            made.rename(file)
        return file.read_text(encoding="ascii")
    except OSError as error:
        raise errors.StoreUnusable(f"{file} cannot be made or read: {error}") from error


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


def _text(text: bytes) -> bytes:
    return len(text).to_bytes(4, "little") + text
