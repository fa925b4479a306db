"""Requests from Ray Serve to the server of this replica, and its answers back, as they come."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Of the connection to whoever sent a request, not of the request.
_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade"})
_CODED = b"transfer-encoding"
_STREAM = "text/event-stream"
# A connection that a server closes just when it is used again loses a request. Servers keep them
# for `limits.idle_seconds`, a minute.
_IDLE_SECONDS = 5.0
# Ray Serve aggregates what it reads over half a minute.
_WINDOW_SECONDS = 30.0
_MOST_SEEN = 4096


class Door:
    """An ASGI app. Where a client leaves, Ray cancels the call, and the connection is closed."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.url = f"http://{address[0]}:{address[1]}"
        self._session: aiohttp.ClientSession | None = None
        self._first: deque[tuple[float, float]] = deque(maxlen=_MOST_SEEN)

    @property
    def session(self) -> aiohttp.ClientSession:
        """Made where the loop runs that uses it."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                auto_decompress=False,
                skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            )
        return self._session

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._pass_on(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(receive, send)
        else:  # a server of ours has no WebSocket
            await send({"type": "websocket.close", "code": 1000})

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def first_seconds(self) -> float:
        """What 95 % of the streams of late waited at most for their first bytes; 0 without any."""
        since = time.monotonic() - _WINDOW_SECONDS
        waited = sorted(seconds for at, seconds in self._first if at > since)
        return waited[int(0.95 * (len(waited) - 1))] if waited else 0.0

    async def _pass_on(self, scope: Message, receive: Receive, send: Send) -> None:
        sent, names = _end_to_end(scope["headers"]), {name for name, _ in scope["headers"]}
        sized = {b"content-length", _CODED} & names
        began, started = time.monotonic(), False
        try:
            async with self.session.request(
                scope["method"],
                _url(self.url, scope),
                headers=[(name.decode("latin-1"), text.decode("latin-1")) for name, text in sent],
                data=_body(receive) if sized else None,
                allow_redirects=False,
            ) as answer:
                start = {
                    "status": answer.status,
                    "headers": _end_to_end(answer.raw_headers, b"date"),
                }
                await send({"type": "http.response.start", **start})
                started = True
                streams = answer.content_type == _STREAM
                async for part in answer.content.iter_any():
                    if streams:
                        now, streams = time.monotonic(), False
                        self._first.append((now, now - began))
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        except (aiohttp.ClientError, TimeoutError) as error:
            if started:
                raise
            await _refuse(send, error)
            return
        await send({"type": "http.response.body", "body": b""})


def _end_to_end(headers: Any, *without: bytes) -> list[tuple[bytes, bytes]]:
    without = (*without, _CODED, *_HOP)
    return [(name, text) for name, text in headers if name.lower() not in without]


def _url(base: str, scope: Message) -> URL:
    """With the path as it was sent: a `/` in a key is not one between parts."""
    path = scope.get("raw_path") or quote(scope["path"]).encode()
    query = scope.get("query_string", b"")
    return URL(
        f"{base}{path.decode('latin-1')}{'?' * bool(query)}{query.decode('latin-1')}", encoded=True
    )


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise aiohttp.ClientConnectionError("the client left")
        if body := message.get("body"):
            yield body
        if not message.get("more_body"):
            return


async def _refuse(send: Send, error: Exception) -> None:
    """The server has ended, and the request has not begun there, or is lost with it."""
    text = f"the server of this replica has ended ({type(error).__name__}); send the request again"
    body = json.dumps({"code": "EngineDead", "message": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
