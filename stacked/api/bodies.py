"""A request's body: read once within a limit, decoded, and how its request can be ended."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Iterator

from starlette.types import Message, Receive

from stacked.errors import (
    BodyInvalid,
    BodyTooLarge,
    EncodingUnsupported,
    StackedError,
    TimeExceeded,
)

# zlib's word for a gzip header, for a zlib header, and for none: "deflate" means either.
_GZIP, _ZLIB, _RAW = 31, 15, -15
# Each member costs a copy of what follows it; clients write one.
_MOST_MEMBERS = 16
_CODINGS = {"gzip": (_GZIP,), "x-gzip": (_GZIP,), "deflate": (_ZLIB, _RAW)}


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


async def read_body(receive: Receive, limit: int, declared: str | None) -> bytes:
    """The whole body, at most `limit` bytes. Raises BodyTooLarge, before reading where it can."""
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def decode(body: bytes, coding: str, limit: int) -> bytes:
    """A body without its content coding, at most `limit` bytes.

    Raises EncodingUnsupported for anything but gzip and deflate, BodyInvalid if the body is not
    encoded so, and BodyTooLarge as soon as it is.
    """
    name = coding.strip().lower()
    if name in ("", "identity") or not body:
        return body
    if name not in _CODINGS:
        raise EncodingUnsupported(
            f"content-encoding {coding[:80]!r} is not taken; send gzip, deflate, or none"
        )
    for window in _CODINGS[name]:
        try:
            return _inflate(body, window, limit)
        except zlib.error:
            continue
    raise BodyInvalid(f"content-encoding is {name}, and the body is not {name}")


def _inflate(body: bytes, window: int, limit: int) -> bytes:
    """Every member of a coded body, one after the other. Raises zlib.error."""
    found = b""
    for _ in range(_MOST_MEMBERS):
        member = zlib.decompressobj(window)
        found += member.decompress(body, limit + 1 - len(found))
        if len(found) > limit:
            raise _too_large(limit)
        if not member.eof:
            raise zlib.error("cut short")
        body = member.unused_data
        if not body:
            return found
    raise zlib.error("too many members")


class Cut:
    """A way to end one request from outside: its app sees that the client has disconnected.

    Every handler of vLLM handles that, streaming or not, and it also aborts the request in the
    engine.
    """

    def __init__(self) -> None:
        self.asked = False
        self.error: StackedError | None = None
        """What it was asked with."""
        self._waiting: set[asyncio.Timeout] = set()

    def ask(self, error: StackedError | None = None) -> None:
        """Only the first call counts."""
        if not self.asked:
            self.asked, self.error = True, error
            for limit in self._waiting:
                limit.reschedule(0)

    @contextlib.contextmanager
    def within(self, seconds: float | None) -> Iterator[None]:
        """Ask when the block takes longer."""
        if seconds is None:
            yield
            return
        sentence = f"the request was not answered within {seconds:g} s (total_seconds)"
        error = TimeExceeded(sentence, "total_seconds")
        timer = asyncio.get_running_loop().call_later(seconds, self.ask, error)
        try:
            yield
        finally:
            timer.cancel()

    async def or_message(self, receive: Receive) -> Message:
        """The client's next message, or its disconnect if the end is requested first."""
        limit = asyncio.timeout(0 if self.asked else None)
        try:
            async with limit:
                self._waiting.add(limit)
                try:
                    return await receive()
                finally:
                    self._waiting.discard(limit)
        except TimeoutError:
            if not limit.expired():
                raise
            return {"type": "http.disconnect"}
        finally:
            # It knows this task, which at its cancellation knows this frame: a cycle a request.
            del limit


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is larger than {limit} bytes; send less, or raise server.max_body_bytes",
        "max_body_bytes",
    )
