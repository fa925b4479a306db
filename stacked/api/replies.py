"""Responses: our headers on each of them, and errors in the shape of their surface.

It must not know which model a request means.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from stacked.api.bodies import Cut
from stacked.api.errors import body_of, refusal
from stacked.errors import StackedError

logger = logging.getLogger("stacked.api")

# As much as a transport buffers before `send` waits.
_SLICE = 64 * 1024


class Tagged:
    """A `send` that adds headers to the response, and can end it."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self._send = send
        self.headers = headers
        self.started = False
        self.ended = False
        self.status: int | None = None
        self.first_body: float | None = None
        self.cut: Cut | None = None
        self.was_cut = False

    async def __call__(self, message: Message) -> None:
        if self.cut is not None and self.cut.asked:
            return  # what follows is vLLM's response to a client that it considers gone
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            own = {name.encode(): value.encode("latin-1") for name, value in self.headers.items()}
            others = [pair for pair in message["headers"] if pair[0].lower() not in own]
            message = {**message, "headers": [*others, *own.items()]}
        else:
            if self.first_body is None:
                self.first_body = time.perf_counter()
            self.ended = not message.get("more_body", False)
            if len(message.get("body", b"")) > _SLICE:
                message = await self._all_but_the_last(message)
        await self._send(message)

    async def _all_but_the_last(self, message: Message) -> Message:
        """Send a body in slices but for the last, which is returned.

        Between them `send` waits for a client that reads slowly, and the request is still counted;
        at once, all of it would be in the transport's buffer, which nobody counts.
        """
        body = message["body"]
        last = (len(body) - 1) // _SLICE * _SLICE
        for start in range(0, last, _SLICE):
            part = body[start : start + _SLICE]
            await self._send({**message, "body": part, "more_body": True})
        return {**message, "body": body[last:]}

    async def cut_off(self, error: StackedError, plain: bool) -> None:
        """End a response that was cut: with an error event, or as an error if none has begun."""
        self.cut, self.was_cut = None, True
        if not self.started:
            await respond_error(error, plain, self)
            return
        event = f"data: {json.dumps(body_of(error, plain=False))}\n\n".encode()
        await self({"type": "http.response.body", "body": event, "more_body": False})


class Reshaped:
    """A `send` that gives error bodies another shape, and can simplify the type of event streams.

    The OCI SDK recognises a stream only when its content type is exactly `text/event-stream`.
    """

    def __init__(
        self,
        send: Callable[[Message], Awaitable[None]],
        shape: Callable[[bytes, int], bytes],
        *,
        bare: bool,
    ) -> None:
        """`shape` gets an error's body and status."""
        self._send = send
        self._shape = shape
        self._bare = bare
        self._held: Message | None = None
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self._held = message
                return
            await self._send(_bared(message) if self._bare else message)
            return
        if self._held is None:
            await self._send(message)
            return
        self._parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body = self._shape(b"".join(self._parts), self._held["status"])
        headers = MutableHeaders(raw=list(self._held["headers"]))
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(body))
        await self._send({**self._held, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body})


def _bared(message: Message) -> Message:
    headers = MutableHeaders(raw=list(message["headers"]))
    if headers.get("content-type", "").startswith("text/event-stream"):
        headers["content-type"] = "text/event-stream"
    return {**message, "headers": headers.raw}


async def respond_error(
    error: StackedError, plain: bool, send: Send, code: str | None = None
) -> None:
    """Answer with an error of ours in the shape of the surface it happened on.

    `code`: that surface's code, if it is not the error's own.
    """
    status, headers, body = refusal(error, plain, code)
    if status >= 500:
        logger.warning("%s: %s", error.code, error)
    raw = json.dumps(body, ensure_ascii=False).encode()
    headers |= {"content-type": "application/json", "content-length": str(len(raw))}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": raw})
