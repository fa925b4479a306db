"""Handlers that vLLM decorates, and their streams, run in the task of their request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.types import Message

from stacked.engine.handlers import run_in_place

pytestmark = pytest.mark.oldest


class Client:
    """One POST to an app; `leave` is what a client does that closes its connection."""

    def __init__(self, app: FastAPI, path: str = "/v1/work") -> None:
        self.sent: list[Message] = []
        self._app, self._path = app, path
        self._asked = False
        self._left = asyncio.Event()
        self.leave = self._left.set

    async def send(self) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "POST",
            "path": self._path,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"{}", "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(each.get("body", b"") for each in self.sent)


def app_with(work: Callable[..., Any]) -> FastAPI:
    """One route, decorated as vLLM's are."""
    from vllm.entrypoints.serve.utils.api_utils import with_cancellation

    app = FastAPI()

    @app.post("/v1/work")
    @with_cancellation  # type: ignore[untyped-decorator]
    async def handle(asked: dict[str, Any], raw_request: Request) -> Any:
        return await work()

    run_in_place(app)
    return app


async def test_handler_and_stream_run_in_the_requests_own_task() -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def parts() -> AsyncIterator[str]:
        for number in range(3):
            tasks.append(asyncio.current_task())
            await asyncio.sleep(0)
            yield f"{number} "

    async def work() -> StreamingResponse:
        tasks.append(asyncio.current_task())
        return StreamingResponse(parts(), media_type="text/event-stream")

    client = Client(app_with(work))
    await client.send()
    assert client.body == b"0 1 2 "
    assert {*tasks} == {asyncio.current_task()}


async def test_what_a_handler_returns_and_raises_is_passed_on() -> None:
    async def work() -> dict[str, int]:
        await asyncio.sleep(0)
        return {"a": 1}

    async def fail() -> None:
        await asyncio.sleep(0)
        raise TimeoutError("its own")

    client = Client(app_with(work))
    await client.send()
    assert client.body == b'{"a":1}'
    with pytest.raises(TimeoutError, match="its own"):
        await Client(app_with(fail)).send()


async def test_a_client_that_leaves_ends_the_handler() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    client = Client(app_with(work))
    sending = asyncio.create_task(client.send())
    await began.wait()
    client.leave()
    await sending
    assert ended.is_set()
    assert client.body == b"null"  # nobody reads it


async def test_a_client_that_leaves_ends_the_stream_and_what_follows_it_is_done() -> None:
    ends: list[str] = []
    began = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            began.set()
            await asyncio.Event().wait()
        finally:
            ends.append("stream")

    async def work() -> StreamingResponse:
        return StreamingResponse(parts(), background=BackgroundTask(ends.append, "background"))

    client = Client(app_with(work))
    sending = asyncio.create_task(client.send())
    await began.wait()
    client.leave()
    await sending
    assert client.body == b"first"
    assert ends == ["stream", "background"]


async def test_a_request_that_is_cancelled_stays_so() -> None:
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    sending = asyncio.create_task(Client(app_with(work)).send())
    await began.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending


async def test_other_routes_are_left_alone() -> None:
    app = FastAPI()

    @app.post("/v1/work")
    async def handle() -> str:
        return "plain"

    run_in_place(app)
    client = Client(app)
    await client.send()
    assert client.body == b'"plain"'
