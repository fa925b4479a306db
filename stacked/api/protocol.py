"""HTTP on one connection, within bounds that uvicorn and its parser lack.

httptools gathers a line or a header of any length, and uvicorn waits for the rest of it for ever.
So it does for a client that stops reading: what it was sent stays in memory. A class of one's own
is uvicorn's extension point for this (`Config.http`).
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from stacked.api.errors import plain_body
from stacked.config import LimitsConfig

# Files that the process opens for other things: records, adapters, the engine, its log.
_RESERVE = 256


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is closed when it exceeds one of `limits`."""

    limits: ClassVar[LimitsConfig]
    most: ClassVar[int]
    """Connections of the server."""
    of_address: ClassVar[Counter[str]]
    """Connections of each client's address."""
    _head: int | None = None
    """Bytes of the request's line and headers while they arrive, from their second part on."""
    _waiting: asyncio.TimerHandle | None = None
    """For the rest of the headers, or a first request."""
    _stalled: asyncio.TimerHandle | None = None
    """While the client takes nothing of what was sent to it."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        address = self._address()
        self.of_address[address] += 1
        each = self.limits.connections_per_address
        if len(self.connections) > self.most:
            self._refuse(503, "TooManyConnections", f"this server takes {self.most} connections")
        elif each is not None and self.of_address[address] > each:
            most = f"one address may have {each} connections (connections_per_address)"
            self._refuse(429, "TooManyConnections", most)
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        address = self._address()
        self.of_address[address] -= 1
        if not self.of_address[address]:
            del self.of_address[address]
        self._stop_waiting()
        self._resumed()
        super().connection_lost(exc)

    def _address(self) -> str:
        return self.client[0] if self.client else ""

    # -- what the client sends ------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._head is not None and self._head > self.limits.header_bytes:
            self._refuse_headers()
        elif self._waiting is None and (self._head is not None or self._is_idle()):
            self._wait()

    def on_message_begin(self) -> None:
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head = None
        self._stop_waiting()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if len(self.headers) > self.limits.headers or size > self.limits.header_bytes:
            self._refuse_headers()
            raise ValueError("too many headers")  # ends the parser, and is not answered again
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(self.limits.idle_seconds, self._waited)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _waited(self) -> None:
        self._waiting = None
        if not self._is_idle():  # a request runs, and the next one has begun behind it
            return
        if self._head is None:  # an answer now would be taken for that of a request on its way
            self.transport.close()
        else:
            seconds = f"{self.limits.idle_seconds:g} s (idle_seconds)"
            self._refuse(408, "HeadersTooSlow", f"the headers were not complete within {seconds}")

    # -- what is sent to it ---------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        # `abort`: a closed transport would wait for the same client to take the rest.
        self._stalled = self.loop.call_later(self.limits.idle_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._resumed()
        super().resume_writing()

    def _resumed(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    # -- refusals, before there is a request ----------------------------------------------------

    def _refuse_headers(self) -> None:
        most = f"{self.limits.headers} headers and {self.limits.header_bytes} bytes of them"
        self._refuse(431, "HeadersTooLarge", f"a request has at most {most}")

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps(plain_body(code, message)).encode()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head % len(body) + body)
        self.transport.close()


def bounded(limits: LimitsConfig, files: int) -> type[BoundedProtocol]:
    """The protocol of a server with these limits, in a process that may open so many files."""
    most = max(1, min(limits.connections, files - _RESERVE))
    own = {"limits": limits, "most": most, "of_address": Counter[str]()}
    return type("Protocol", (BoundedProtocol,), own)
