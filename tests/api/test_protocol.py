"""The bounds of a connection over real sockets: headers, silence, and clients that do not read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from stacked.api.protocol import BoundedProtocol, bounded
from stacked.api.replies import Tagged
from stacked.api.server import _uvicorn_config
from stacked.config import ControlConfig, LimitsConfig, ServerConfig
from stacked.service import Service

FILES = 5000
PIECE = b"x" * 4096
LARGE = PIECE * 8192  # more than the kernel's buffers take


@dataclass
class App:
    """Answers `/endless` until the client leaves, `/large` at once, and others with what it got."""

    left: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    requests: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        send = Tagged(send, {})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/endless":
            await self._stream(receive, send)
            return
        body = LARGE if scope["path"] == "/large" else b"done"
        await send({"type": "http.response.body", "body": body})
        self.left.set()

    async def _stream(self, receive: Receive, send: Send) -> None:
        """As Starlette does it: a stream is cancelled when its client has gone."""

        async def pieces() -> None:
            while True:
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
                self.sent += len(PIECE)

        stream = asyncio.create_task(pieces())
        while (await receive())["type"] != "http.disconnect":
            pass
        stream.cancel()
        self.left.set()


@contextlib.asynccontextmanager
async def serving(app: App, **limits: float) -> AsyncIterator[int]:
    """The app's port, behind the bounded protocol."""
    config = uvicorn.Config(
        app,
        port=0,
        http=bounded(LimitsConfig(**limits), FILES),
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    server = uvicorn.Server(config)
    sock = config.bind_socket()
    sock.listen()  # so that a client may connect before the server takes it
    running = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield sock.getsockname()[1]
    finally:
        server.force_exit = server.should_exit = True
        await running


async def sent(port: int, *parts: bytes) -> bytes:
    """All that the server answers to these bytes, until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
    try:
        return await reader.read()
    except ConnectionResetError:  # it was closed with bytes of ours unread
        return b""
    finally:
        writer.close()


GET = b"GET / HTTP/1.1\r\nhost: a\r\n"
CLOSE = b"connection: close\r\n\r\n"


async def test_a_request_within_the_limits_is_answered() -> None:
    app = App()
    async with serving(app, headers=8, header_bytes=1024) as port:
        more = b"".join(b"h%d: %s\r\n" % (i, b"v" * 100) for i in range(6))
        answer = await sent(port, GET + more + CLOSE)
        assert answer.startswith(b"HTTP/1.1 200")
        in_parts = [bytes([byte]) for byte in GET + CLOSE]
        assert (await sent(port, *in_parts)).endswith(b"done\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"h%d: v\r\n" % i for i in range(9)) + CLOSE,
        b"long: " + b"v" * 2000 + b"\r\n" + CLOSE,
        b"".join(b"%d: %s\r\n" % (i, b"v" * 300) for i in range(5)) + CLOSE,
    ],
)
async def test_headers_over_a_limit_are_refused(head: bytes) -> None:
    app = App()
    async with serving(app, headers=8, header_bytes=1024) as port:
        answer = await sent(port, GET + head)
    assert answer.startswith(b"HTTP/1.1 431")
    assert b'"HeadersTooLarge"' in answer
    assert answer.count(b"HTTP/1.1") == 1
    assert app.requests == 0


@pytest.mark.parametrize("begun", [b"GET /", GET, GET + b"endless: "])
async def test_headers_without_an_end_are_refused_while_they_arrive(begun: bytes) -> None:
    app = App()
    async with serving(app, header_bytes=4096) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while not answer:
                writer.write(b"y" * 512)
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    answer = await asyncio.wait_for(reader.read(), 0.01)
        writer.close()
    assert app.requests == 0
    assert b"431" in answer or not answer  # a reset may overtake the answer


@pytest.mark.parametrize("begun", [GET, b"GET"])
async def test_a_client_that_does_not_finish_its_headers_is_answered(begun: bytes) -> None:
    async with serving(App(), idle_seconds=0.2) as port:
        answer = await sent(port, begun)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"HeadersTooSlow"' in answer
    assert b"idle_seconds" in answer


async def test_a_connection_on_which_nothing_was_sent_is_closed_without_an_answer() -> None:
    """What is sent unasked would be the answer to the client's next request."""
    async with serving(App(), idle_seconds=0.2) as port:
        assert await sent(port, b"") == b""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET + b"\r\n")
        assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.read() == b""
        writer.close()


async def test_a_client_that_sends_its_headers_ever_so_slowly_is_closed() -> None:
    async with serving(App(), idle_seconds=0.3) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answer: bytes | None = None
        writer.write(GET)
        with contextlib.suppress(ConnectionError):
            while answer is None:
                writer.write(b"h: v\r\n")
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    answer = await asyncio.wait_for(reader.read(), 0.05)
        assert not answer or answer.startswith(b"HTTP/1.1 408")  # a reset may overtake it
        writer.close()


async def test_line_ends_alone_keep_no_connection_open() -> None:
    async with serving(App(), idle_seconds=0.3) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET + b"\r\n")
        assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")
        closed = False
        with contextlib.suppress(ConnectionError):
            while not closed:
                writer.write(b"\r\n")
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    closed = await asyncio.wait_for(reader.read(), 0.05) == b""
        writer.close()


async def test_a_long_answer_to_a_silent_client_is_not_cut() -> None:
    app = App()
    async with serving(app, idle_seconds=0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
        read = 0
        while read < 40 * len(PIECE):
            read += len(await reader.read(65536))
            await asyncio.sleep(0.02)
        assert not app.left.is_set()
        writer.close()
        await app.left.wait()


@pytest.mark.parametrize("path", [b"/endless", b"/large"])
async def test_a_client_that_does_not_read_is_ended_and_holds_little(path: bytes) -> None:
    app = App()
    async with serving(app, idle_seconds=0.3) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET " + path + b" HTTP/1.1\r\nhost: a\r\n\r\n")
        await app.left.wait()
        assert app.sent < len(LARGE)
        read = 0
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(65536):
                read += len(part)
        assert read < len(LARGE)
        writer.close()


async def test_more_connections_than_allowed_are_refused_and_others_go_on() -> None:
    async with serving(App(), connections=2) as port:
        first = await asyncio.open_connection("127.0.0.1", port)
        second = await asyncio.open_connection("127.0.0.1", port)
        answer = await sent(port, b"")
        assert answer.startswith(b"HTTP/1.1 503")
        assert b'"TooManyConnections"' in answer
        for reader, writer in (first, second):
            writer.write(GET + CLOSE)
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
        assert (await sent(port, GET + CLOSE)).startswith(b"HTTP/1.1 200")


async def test_one_address_has_so_many_connections_and_gets_them_back() -> None:
    async with serving(App(), connections_per_address=1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answer = await sent(port, b"")
        assert answer.startswith(b"HTTP/1.1 429")
        assert b"connections_per_address" in answer
        writer.write(GET + CLOSE)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        assert (await sent(port, GET + CLOSE)).startswith(b"HTTP/1.1 200")


def test_connections_leave_files_for_the_rest_of_the_process() -> None:
    assert bounded(LimitsConfig(connections=9000), 1024).most == 768
    assert bounded(LimitsConfig(connections=500), 1024).most == 500


def test_a_server_speaks_it_with_its_own_limits(tmp_path: Path) -> None:
    settings = ServerConfig(limits=LimitsConfig(headers=9, idle_seconds=7.5))
    config = _uvicorn_config(Service(ControlConfig(server=settings), tmp_path), None)
    assert isinstance(config.http, type)
    assert issubclass(config.http, BoundedProtocol)
    assert config.http.limits.headers == 9
    assert config.timeout_keep_alive == 8


@pytest.mark.parametrize("length", [0, 1, 65536, 65537, 200_000])
async def test_a_body_is_sent_in_slices_and_stays_the_same(length: int) -> None:
    seen: list[Message] = []

    async def send(message: Message) -> None:
        seen.append(message)

    body = bytes(range(256)) * (length // 256 + 1)
    await Tagged(send, {})({"type": "http.response.body", "body": body[:length]})
    assert b"".join(message["body"] for message in seen) == body[:length]
    assert all(len(message["body"]) <= 65536 for message in seen)
    more = [message.get("more_body", False) for message in seen]
    assert more == [True] * (len(seen) - 1) + [False]
