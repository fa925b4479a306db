"""Requests through the door, to a server that answers what it got."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from stacked.ray.door import Door
from tests.serving import free_port


class Upstream:
    """What the server of a replica is to the door."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.go_on = asyncio.Event()
        self.began = asyncio.Event()

    async def echo(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        said = {
            "method": request.method,
            "path": request.raw_path,
            "headers": {name.lower(): text for name, text in request.headers.items()},
            "body": body.decode(),
        }
        return web.json_response(said, status=418, headers={"x-twice": "a"})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b"data: 1\n\n")
        self.began.set()
        try:
            await self.go_on.wait()
            await answer.write(b"data: 2\n\n")
        except asyncio.CancelledError:
            self.left.set()
            raise
        return answer


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[Upstream, int]]:
    server, app, port = Upstream(), web.Application(), free_port()
    app.router.add_post("/stream", server.stream)
    app.router.add_route("*", "/{rest:.*}", server.echo)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield server, port
    await runner.cleanup()


class Call:
    """One request as Ray Serve makes it."""

    def __init__(self, method: str, path: bytes, headers: Any = (), body: tuple[bytes, ...] = ()):
        raw, _, query = path.partition(b"?")
        self.scope = {
            "type": "http",
            "method": method,
            "path": "/decoded",
            "raw_path": raw,
            "query_string": query,
            "headers": list(headers),
        }
        self._parts = list(body)
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive(self) -> dict[str, Any]:
        if not self._parts:
            return {"type": "http.disconnect"}
        part = self._parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(self._parts)}

    async def send(self, message: Any) -> None:
        await self.sent.put(message)

    async def through(self, door: Door) -> tuple[int, dict[bytes, bytes], bytes]:
        await door(self.scope, self.receive, self.send)
        messages = [self.sent.get_nowait() for _ in range(self.sent.qsize())]
        body = b"".join(each.get("body", b"") for each in messages)
        return messages[0]["status"], dict(messages[0]["headers"]), body


async def test_a_request_comes_as_it_was_sent(upstream: tuple[Upstream, int]) -> None:
    door = Door(("127.0.0.1", upstream[1]))
    headers = [(b"host", b"fleet.example"), (b"content-length", b"4"), (b"connection", b"close")]
    call = Call("POST", b"/models/a%2Fb/predict?x=%20", headers, (b"ab", b"cd"))
    status, answered, body = await call.through(door)
    await door.close()
    said = json.loads(body)
    assert status == 418
    assert answered[b"x-twice"] == b"a"
    assert b"transfer-encoding" not in answered
    assert (said["method"], said["path"], said["body"]) == (
        "POST",
        "/models/a%2Fb/predict?x=%20",
        "abcd",
    )
    assert said["headers"] == {"host": "fleet.example", "content-length": "4"}


async def test_a_body_of_unknown_length_comes_too(upstream: tuple[Upstream, int]) -> None:
    door = Door(("127.0.0.1", upstream[1]))
    call = Call("PUT", b"/", [(b"transfer-encoding", b"chunked")], (b"ab", b"cd"))
    _, _, body = await call.through(door)
    await door.close()
    assert json.loads(body)["body"] == "abcd"


async def test_a_stream_comes_as_it_is_made_and_its_start_is_measured(
    upstream: tuple[Upstream, int],
) -> None:
    server, port = upstream
    door = Door(("127.0.0.1", port))
    assert door.first_seconds() == 0
    call = Call("POST", b"/stream")
    task = asyncio.create_task(door(call.scope, call.receive, call.send))
    assert (await call.sent.get())["status"] == 200
    assert (await call.sent.get())["body"] == b"data: 1\n\n"
    assert door.first_seconds() > 0
    server.go_on.set()
    await task
    assert (await call.sent.get())["body"] == b"data: 2\n\n"
    assert (await call.sent.get()) == {"type": "http.response.body", "body": b""}
    await door.close()


async def test_who_leaves_ends_the_request_at_the_server(upstream: tuple[Upstream, int]) -> None:
    server, port = upstream
    door = Door(("127.0.0.1", port))
    call = Call("POST", b"/stream")
    task = asyncio.create_task(door(call.scope, call.receive, call.send))
    await server.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(server.left.wait(), 10)
    await door.close()


async def test_a_server_that_has_ended_is_said_so() -> None:
    door = Door(("127.0.0.1", free_port()))
    status, headers, body = await Call("POST", b"/predict").through(door)
    await door.close()
    assert status == 503
    assert headers[b"retry-after"] == b"1"
    assert json.loads(body)["code"] == "EngineDead"
