"""One request of the server's own to a model, through the same app as a client's.

Templates, parsers and parameters are those of every request. Nothing else is: no caller, no limits,
no rates, no usage, no line in a log. It must not know what the answer is for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from stacked.engine.loaded import Loaded
from stacked.errors import ParameterInvalid, StackedError, TimeExceeded
from stacked.fairness import Share
from stacked.groups.routing import Route
from stacked.serving import Message, Report, Scope
from stacked.serving.door import Call
from stacked.serving.targets import model_target
from stacked.serving.vllm import VllmServing

MAX_ANSWER_BYTES = 16 * 1024**2
# How long vLLM may take to abort a request that was given up.
_ABORT_SECONDS = 10.0


class Answer(NamedTuple):
    """What the app answered, and the tokens that the engine read and made for it."""

    status: int
    body: bytes
    prompt_tokens: int
    generated_tokens: int

    def json(self) -> Any:
        return json.loads(self.body)


class _Reply:
    """A `send` that keeps the response, and a `receive` that reports when it is given up."""

    def __init__(self) -> None:
        self.given_up = asyncio.Event()
        self.why: StackedError | None = None
        self.status = 500
        self.size = self.prompt_tokens = self.generated_tokens = 0
        self.parts: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        part = message.get("body", b"")
        self.size += len(part)
        if self.size > MAX_ANSWER_BYTES:
            self.end(ParameterInvalid(f"the answer is larger than {MAX_ANSWER_BYTES} bytes"))
        else:
            self.parts.append(part)

    async def receive(self) -> Message:
        await self.given_up.wait()
        return {"type": "http.disconnect"}

    def end(self, why: StackedError | None = None) -> None:
        self.why = self.why or why
        self.given_up.set()

    def count(self, prompt: int, generated: int, at_length: bool) -> None:
        self.prompt_tokens += prompt
        self.generated_tokens += generated


async def ask(
    serving: VllmServing,
    route: Route[Loaded],
    path: str,
    body: Mapping[str, Any],
    *,
    share: Share,
    seconds: float = 600.0,
    output: Callable[[Any], None] | None = None,
) -> Answer:
    """Have this route's model answer, which need not be served yet; `path` is one of vLLM's.

    `share` says whose part of the engine it takes; with `batch`, clients' requests go first. The
    model is leased until the request has left the engine, also if this is cancelled. Errors that
    the app answers with are answers. Raises ParameterInvalid, ParameterUnsupported, TimeExceeded,
    and what its lease is ended with, such as EngineDead.
    """
    target = model_target("POST", path)
    if target is None:
        raise ParameterInvalid(f"{path} runs no model")
    raw = json.dumps(body, ensure_ascii=False).encode()
    call = Call(target, _scope(path), raw, body)
    reply = _Reply()
    report = Report(reply.count, lambda _: None, output)
    with serving.live.leases.take(route.handle, reply.end):
        answering = asyncio.ensure_future(
            serving.door.answer(
                call,
                route,
                reply.receive,
                reply.send,
                report,
                died=partial(serving.died, reply.end),
                share=share,
            )
        )
        answering.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            done, _ = await asyncio.wait({answering}, timeout=seconds)
            if not done:
                reply.end(TimeExceeded(f"no answer within {seconds:g} s", "seconds"))
        finally:
            # Given up as a client gives up: vLLM's handlers would leave a cancelled one running.
            reply.given_up.set()
            await asyncio.wait({answering}, timeout=_ABORT_SECONDS)
            answering.cancel()
    if reply.why is not None:
        raise reply.why
    await answering  # raises what it has raised
    return Answer(reply.status, b"".join(reply.parts), reply.prompt_tokens, reply.generated_tokens)


def _scope(path: str) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "server": None,
        "client": None,
    }
