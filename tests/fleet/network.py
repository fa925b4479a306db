"""What is between the processes of a fleet, under control: a balancer, and a way to the database.

All of it runs on the loop of one thread; methods may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_CHUNK = 2**16
_CHECK_SECONDS = 0.2
_CHECK = b"GET /health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
_NONE = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """A task of the loop."""

        async def begun() -> asyncio.Future[T]:
            return asyncio.ensure_future(work)

        return self.run(begun())

    def close(self) -> None:
        self.run(self._cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(60)
        self.loop.close()

    async def _cancel(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Listener:
    """A port on loopback, and a task for each of its connections."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[Any] | None] = set()
        self._server = loop.run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)  # nothing else holds it for as long as its reader waits
        try:
            await self.connected((reader, writer))
        except (OSError, asyncio.CancelledError):
            pass  # one side is gone
        finally:
            self._tasks.discard(task)
            writer.close()

    async def connected(self, client: Streams) -> None:
        """One connection, to its end."""
        raise NotImplementedError


class Balancer(Listener):
    """Gives each connection to the next replica that is ready, and another if that is not there.

    Like any balancer it learns late, at its next look, that a replica is not ready.
    """

    def __init__(self, loop: Loop, ports: list[int]) -> None:
        self.ready = dict.fromkeys(ports, False)
        self._turns = itertools.count()
        super().__init__(loop)
        for port in ports:
            loop.begin(self._watch(port))

    async def connected(self, client: Streams) -> None:
        turn = next(self._turns)
        ports = [port for port, ready in self.ready.items() if ready]
        for at in range(len(ports)):
            port = ports[(turn + at) % len(ports)]
            try:
                replica = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_pass_on(client[0], replica[1]))
                    both.create_task(_pass_on(replica[0], client[1]))
            except* OSError:
                pass
            finally:
                replica[1].close()
            return
        client[1].write(_NONE)
        await client[1].drain()
        await client[0].read(_CHUNK)

    async def _watch(self, port: int) -> None:
        while True:
            self.ready[port] = await _is_ready(port)
            await asyncio.sleep(_CHECK_SECONDS)


async def _is_ready(port: int) -> bool:
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_CHECK)
            line = await reader.readline()
            writer.close()
    except OSError:
        return False
    return b" 200 " in line


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


class _Ambush:
    """Waits for a transaction with a statement that has all of these bytes."""

    def __init__(self, words: Sequence[bytes], after: bool, strike: Callable[[], None]) -> None:
        self.words, self.after, self.strike = words, after, strike
        self.within: object = None
        """The connection with the transaction."""
        self.committing = False


class Way(Listener):
    """One replica's way to the database: cut, silent, or in order."""

    def __init__(self, loop: Loop, port: int) -> None:
        self._port = port
        self._cut = False
        self._open = asyncio.Event()
        self._ambush: _Ambush | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        super().__init__(loop)
        self.heal()

    def cut(self) -> None:
        """End every connection, and each new one at once."""
        self._loop.loop.call_soon_threadsafe(self.cut_now)

    def silence(self) -> None:
        """Nothing arrives, in neither direction, until `heal`: then all of it does."""
        self._loop.loop.call_soon_threadsafe(self._open.clear)

    def heal(self) -> None:
        self._loop.loop.call_soon_threadsafe(self._healed)

    def ambush(self, words: Sequence[bytes], after: bool, strike: Callable[[], None]) -> None:
        """Strike, on the loop, as the replica sends a statement with all of these bytes: if the way
        is then cut or silent, it does not arrive. Or `after` its transaction, of whose end the
        replica then does not hear.
        """
        self._ambush = _Ambush(words, after, strike)

    @property
    def silent(self) -> bool:
        return not self._open.is_set()

    def forget(self) -> None:
        """No more ambush."""
        self._ambush = None

    def cut_now(self) -> None:
        """`cut`, on the loop."""
        self._cut = True
        for writer in self._writers:
            writer.transport.abort()

    def silence_now(self) -> None:
        """`silence`, on the loop."""
        self._open.clear()

    def _healed(self) -> None:
        self._cut = False
        self._open.set()

    async def connected(self, client: Streams) -> None:
        await self._open.wait()
        if self._cut:
            return
        server = await asyncio.open_connection("127.0.0.1", self._port)
        both = {client[1], server[1]}
        self._writers |= both
        token = object()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry(client[0], server[1], token, self._sent))
                tasks.create_task(self._carry(server[0], client[1], token, self._answered))
        except* OSError:
            pass
        finally:
            self._writers -= both
            server[1].close()

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        token: object,
        met: Callable[[object, bytes], None],
    ) -> None:
        while data := await reader.read(_CHUNK):
            met(token, data)
            await self._open.wait()
            if self._cut:
                return
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    def _sent(self, token: object, data: bytes) -> None:
        ambush = self._ambush
        if ambush is None:
            return
        if ambush.within is token:
            ambush.committing = b"COMMIT\0" in data
            if b"ROLLBACK\0" in data:
                ambush.within = None
        if ambush.within is None and all(word in data for word in ambush.words):
            ambush.within = token
            if not ambush.after:
                self._strike(ambush)

    def _answered(self, token: object, data: bytes) -> None:
        ambush = self._ambush
        if ambush is not None and ambush.within is token and ambush.committing:
            self._strike(ambush)

    def _strike(self, ambush: _Ambush) -> None:
        self._ambush = None
        ambush.strike()
