"""The front door, as pure ASGI: which model a request means, decided once, and its lease.

Resolves the key, takes the lease, tells the engine's app what was selected, and releases the lease
when the call ends, however it ends. It must not know what a completion is.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stacked import metrics
from stacked.api import request_ids
from stacked.api.bodies import ClientGone, Cut, parse_object, read_body, replay, with_fields
from stacked.api.control.answers import PREFIX, oci_code, versioned
from stacked.api.errors import (
    INTERNAL,
    INTERNAL_CODE,
    openai_body,
    plain_body,
    status_of,
    to_plain,
)
from stacked.api.gate import Gate
from stacked.api.targets import (
    Target,
    inner_path,
    is_open,
    is_plain,
    model_target,
    predict_path,
)
from stacked.core import short
from stacked.engine.engine import Loaded
from stacked.engine.openai import Selection, known_parameters, selected
from stacked.errors import KeyDraining, ParameterInvalid, StackedError
from stacked.groups.routing import Route
from stacked.service import Service

logger = logging.getLogger("stacked.api")

_TRUE = frozenset({"true", "1", "yes"})


class FrontDoor:
    """The outermost ASGI app: model requests to vLLM's app with a lease, the rest to `ours`."""

    def __init__(self, service: Service, ours: ASGIApp, gate: Gate | None = None) -> None:
        """`gate`: who may come in; None lets every request in."""
        self._service = service
        self._ours = ours
        self._gate = gate
        self._known: Mapping[str, frozenset[str]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._ours(scope, receive, send)
            return
        headers = Headers(scope=scope)
        id = request_ids.begin(headers.get(request_ids.HEADER))
        tagged = _Tagged(send, {request_ids.HEADER: id})
        method, path = scope["method"], scope["path"]
        if path.startswith("//"):  # an SDK whose endpoint ends in a slash
            path = scope["path"] = "/" + path.lstrip("/")
        deployment, path = inner_path(path)
        path = scope["path"] = versioned(method, path)
        target = model_target(method, path)
        plain = target.plain if target else is_plain(path)
        try:
            if self._gate is not None:
                receive = await self._gate.admit(scope, receive)
            if deployment is not None:
                self._service.check_served(deployment)
            if target is not None:
                await self._run_model(target, headers, scope, receive, tagged)
            elif is_open(method, path):
                await self._vllm(scope, receive, tagged)
            else:
                await self._ours(scope, receive, tagged)
        except ClientGone:
            return
        except StackedError as error:
            if tagged.started:
                raise
            await respond_error(
                error, plain, tagged, oci_code(error, PREFIX if deployment else path)
            )
        except Exception:  # a fault of ours: the client gets a whole answer, the log the trace
            if tagged.started:
                raise
            logger.exception("%s %s failed", method, path)
            await respond_error(StackedError(INTERNAL), plain, tagged, INTERNAL_CODE)

    async def _run_model(
        self, target: Target, headers: Headers, scope: Scope, receive: Receive, send: _Tagged
    ) -> None:
        limit = self._service.config.server.max_body_bytes
        body = await read_body(receive, limit, headers.get("content-length"))
        tree = parse_object(body) if body else {}
        cut = Cut()
        admission = self._service.admit(_names(target, headers, tree), cut.ask)
        route = admission.route
        with admission.lease, _counted(route, send) as labels:
            send.headers |= _route_headers(route)
            path = target.path or predict_path(tree, self._service.predict_endpoint)
            self._check_parameters(path, tree)
            body = _body_for_vllm(body, tree, target, headers, route)
            send.cut = cut
            out: Send = _PlainErrors(send) if target.plain else send
            inner = {
                **scope,
                "path": path,
                "raw_path": path.encode(),
                "headers": _inner_headers(scope["headers"], len(body), target.plain),
            }
            token = selected.set(
                Selection(route.label, route.handle, partial(metrics.tokens, *labels))
            )
            try:
                await self._vllm(inner, replay(body, receive, cut), out)
            finally:
                selected.reset(token)
            if cut.asked and not send.ended:
                await send.cut_off(_overdue(route), target.plain)

    async def _vllm(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._service.openai_app(scope, receive, send)

    def _check_parameters(self, path: str, tree: Mapping[str, Any]) -> None:
        if self._known is None:
            self._known = known_parameters(self._service.openai_app)
        known = self._known.get(path)
        if known is None:
            return
        for name in tree:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ParameterInvalid(f"unknown parameter {name[:80]!r}{hint}")


def _names(target: Target, headers: Headers, tree: Mapping[str, Any]) -> dict[str, str]:
    """Every place where a request names its model: place -> name."""
    names: dict[str, str] = {}
    for header in ("model-key", "model-ocid"):
        for at, value in enumerate(headers.getlist(header)):
            names[f"header {header}" + (f" ({at + 1})" if at else "")] = value.strip()
    if target.model is not None:
        names["path"] = target.model
    model = tree.get("model")
    if model is not None:
        if not isinstance(model, str):
            raise ParameterInvalid(f"model must be a string, not {type(model).__name__}")
        names["body model"] = model
    return names


@contextlib.contextmanager
def _counted(route: Route[Loaded], send: _Tagged) -> Iterator[tuple[str, str]]:
    """Count a request by the key it used and the content it got, however it ends."""
    labels = (route.label, short(route.digest) if route.digest else "base")
    began = time.perf_counter()
    metrics.request_began(*labels)
    try:
        yield labels
    finally:
        if send.first_body is not None:
            metrics.first_byte(*labels, send.first_body - began)
        metrics.request_ended(*labels, send.status)


def _overdue(route: Route[Loaded]) -> KeyDraining:
    return KeyDraining(
        f"model {route.label!r} was replaced, and this request outlasted the drain deadline; "
        "send it again"
    )


def _body_for_vllm(
    body: bytes, tree: dict[str, Any], target: Target, headers: Headers, route: Route[Loaded]
) -> bytes:
    if not tree:
        return body
    fields: dict[str, Any] = {}
    if tree.get("model") is None:
        fields["model"] = route.label
    if target.plain and (target.stream or headers.get("enable-streaming", "").lower() in _TRUE):
        fields["stream"] = True
    return with_fields(body, tree, fields)


def _route_headers(route: Route[Loaded]) -> dict[str, str]:
    headers = {
        "model-ocid": route.model_id,
        "model-digest": route.digest or "base",
        "model-generation": str(route.generation),
    }
    return headers | ({"model-key": route.key} if route.key else {})


def _inner_headers(
    headers: list[tuple[bytes, bytes]], length: int, plain: bool
) -> list[tuple[bytes, bytes]]:
    """The request's headers for a body that is whole: a length, and no transfer coding.

    On `/predict` a body that parsed is JSON, whatever a plain `curl -d` called it; on `/v1` vLLM's
    own rule holds.
    """
    dropped = {b"content-length", b"transfer-encoding"} | ({b"content-type"} if plain else set())
    kept = [pair for pair in headers if pair[0] not in dropped]
    kept.append((b"content-length", str(length).encode()))
    return [*kept, (b"content-type", b"application/json")] if plain else kept


class _Tagged:
    """A `send` that adds headers to the response, and can put an end of its own to it."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self._send = send
        self.headers = headers
        self.started = False
        self.ended = False
        self.status: int | None = None
        self.first_body: float | None = None
        self.cut: Cut | None = None

    async def __call__(self, message: Message) -> None:
        if self.cut is not None and self.cut.asked:
            return  # what comes now is vLLM's word to a client that it takes for gone
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            headers = MutableHeaders(raw=list(message["headers"]))
            for name, value in self.headers.items():
                headers[name] = value
            message = {**message, "headers": headers.raw}
        else:
            if self.first_body is None:
                self.first_body = time.perf_counter()
            self.ended = not message.get("more_body", False)
        await self._send(message)

    async def cut_off(self, error: StackedError, plain: bool) -> None:
        """End a response that was cut: with an error event, or as an error where none has begun."""
        self.cut = None
        if not self.started:
            await respond_error(error, plain, self)
            return
        shaped = openai_body(error.code, str(error), status_of(error))
        event = f"data: {json.dumps(shaped)}\n\n".encode()
        await self({"type": "http.response.body", "body": event, "more_body": False})


class _PlainErrors:
    """A `send` that turns vLLM's error bodies into the plain shape, and bares event streams.

    The OCI SDK takes a stream for one only when its content type is exactly `text/event-stream`.
    """

    def __init__(self, send: Callable[[Message], Awaitable[None]]) -> None:
        self._send = send
        self._held: Message | None = None
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self._held = message
                return
            headers = MutableHeaders(raw=list(message["headers"]))
            if headers.get("content-type", "").startswith("text/event-stream"):
                headers["content-type"] = "text/event-stream"
            await self._send({**message, "headers": headers.raw})
            return
        if self._held is None:
            await self._send(message)
            return
        self._parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        status = self._held["status"]
        body = to_plain(b"".join(self._parts), status)
        await _send_json(self._send, status, body)


async def respond_error(
    error: StackedError, plain: bool, send: Send, code: str | None = None
) -> None:
    """Answer with an error of ours in the shape of the surface it happened on.

    `code`: what that surface calls it, where that is not the error's own code.
    """
    status = status_of(error)
    if status >= 500:
        logger.warning("%s: %s", error.code, error)
    shaped = plain_body(code or error.code, str(error))
    if not plain:
        shaped = openai_body(code or error.code, str(error), status)
    await _send_json(send, status, json.dumps(shaped, ensure_ascii=False).encode())


async def _send_json(send: Send, status: int, body: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status == 401:  # HTTP wants to be told what would do
        headers.append((b"www-authenticate", b'Signature version="1"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
