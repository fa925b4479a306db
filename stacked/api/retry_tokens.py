"""`opc-retry-token`: a repeated call is carried out once, and gets the first response again.

Only successful responses are stored; a call that failed may be made again. It must not
know what a call does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fastapi import Request, Response
from starlette.types import Message, Receive

from stacked.api.bodies import ClientGone, read_body
from stacked.api.gate import is_upload
from stacked.callers import caller_of
from stacked.errors import InvalidatedRetryToken, ParameterInvalid
from stacked.registry import Registry
from stacked.registry.retry_tokens import FirstCall, RetryToken, StoredAnswer
from stacked.serving.bodies import replay

Handle = Callable[[Request], Awaitable[Response]]

HEADER = "opc-retry-token"
_TOKEN = re.compile(r"[!-~]{1,64}")
# Stored for a payload until its upload has passed; no digest is empty.
_NOT_READ = ""
# For a call at another server of a fleet, which may also have been killed: clients wait a minute.
PATIENCE = 20.0
_LOOK_SECONDS = 0.25
# Made anew for each response, and so not stored.
_OF_THE_ANSWER = frozenset({"content-length", "opc-request-id", "date"})


@dataclass
class _Turns:
    """Concurrent calls with one token."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    count: int = 0


class RetryTokens:
    """Runs calls once for each token. One object for all routes of a server.

    Of two concurrent calls with one token, the second waits for the first and gets its response.
    """

    def __init__(
        self, registry: Callable[[], Registry], max_body_bytes: int, patience: float = 0.0
    ) -> None:
        """`patience`: for how many seconds a call may run at another server."""
        self._registry = registry
        self._limit = max_body_bytes
        self._patience = patience
        self._under_way: dict[RetryToken, _Turns] = {}

    async def once(self, request: Request, handle: Handle) -> Response:
        """`handle(request)`, or its earlier response to the same call.

        Only POST counts. Raises InvalidatedRetryToken if the token was used for other content,
        or its first call was cut off; ParameterInvalid for an invalid token.
        """
        text = request.headers.get(HEADER)
        if text is None or request.method != "POST":
            return await handle(request)
        if not _TOKEN.fullmatch(text):
            raise ParameterInvalid(f"{HEADER} has 1 to 64 characters, and no spaces")
        operation = f"{request.method} {request.scope['path']}"
        token = RetryToken(caller_of(request.scope).id, operation, text)
        async with self._turn(token):
            return await self._alone(token, request, handle)

    @contextlib.asynccontextmanager
    async def _turn(self, token: RetryToken) -> AsyncIterator[None]:
        turns = self._under_way.setdefault(token, _Turns())
        turns.count += 1
        try:
            async with turns.lock:
                yield
        finally:
            turns.count -= 1
            if not turns.count:
                del self._under_way[token]

    async def _alone(self, token: RetryToken, request: Request, handle: Handle) -> Response:
        seen = hashlib.sha256(request.scope.get("query_string", b"") + b"\n")
        if is_upload(request.method, request.scope["path"]):
            # Too large to hold: its digest is known when the work is done.
            request = Request(request.scope, _hashed(request.receive, seen))
            payload = None
        else:
            body = await read_body(
                request.receive, self._limit, request.headers.get("content-length")
            )
            seen.update(body)
            request = Request(request.scope, replay(body, request.receive))
            payload = seen.hexdigest()
        call = await self._begun(token, payload or _NOT_READ)
        if call is not None:
            if payload is None:
                await _drain(request.receive)
            return _answered(call, seen.hexdigest())
        return await self._first(token, request, handle, seen.hexdigest)

    async def _begun(self, token: RetryToken, payload: str) -> FirstCall | None:
        """The first call with a token, when it has ended; None: it is this one."""
        begin, until = self._registry().retry_tokens.begin, time.monotonic() + self._patience
        while True:
            call = await asyncio.to_thread(begin, token, payload, datetime.now(UTC))
            if call is None or call.answer is not None or time.monotonic() >= until:
                return call
            await asyncio.sleep(_LOOK_SECONDS)

    async def _first(
        self, token: RetryToken, request: Request, handle: Handle, payload: Callable[[], str]
    ) -> Response:
        kept = None
        try:
            response = await handle(request)
            kept = _kept(response)
        finally:
            if kept is None:
                await asyncio.shield(asyncio.to_thread(self._registry().retry_tokens.forget, token))
        if kept is not None:
            await asyncio.to_thread(self._registry().retry_tokens.finish, token, payload(), kept)
        return response


def _answered(call: FirstCall, payload: str) -> Response:
    if call.answer is None:
        raise InvalidatedRetryToken(
            "the first call with this retry token was cut off, such as by a stop of the server, or "
            "another server of the fleet is still at it; look whether it was done, and use a new "
            "token"
        )
    if call.payload != payload:
        raise InvalidatedRetryToken(
            "this retry token was used with other content; use a new one for a new request"
        )
    return Response(call.answer.body, call.answer.status, dict(call.answer.headers))


def _kept(response: Response) -> StoredAnswer | None:
    """The response for the same call later; None for a failure or an incomplete body."""
    body = getattr(response, "body", None)
    if response.status_code >= 300 or body is None:
        return None
    headers = {name: text for name, text in response.headers.items() if name not in _OF_THE_ANSWER}
    return StoredAnswer(response.status_code, headers, bytes(body))


async def _drain(receive: Receive) -> None:
    """Read the rest of a body, only for its digest."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        more = message.get("more_body", False)


def _hashed(receive: Receive, seen: hashlib._Hash) -> Receive:
    async def receive_hashed() -> Message:
        message = await receive()
        seen.update(message.get("body", b""))
        return message

    return receive_hashed
