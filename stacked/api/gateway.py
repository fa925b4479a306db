"""The gateway, as pure ASGI: which model a request means, decided once, and its lease.

Resolves the key, takes the lease, tells the engine's app what was selected, and releases the lease
when the call ends, however it ends. It must not know what a completion is.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from stacked import metrics
from stacked.api import request_ids
from stacked.api.bodies import (
    ClientGone,
    Cut,
    decode,
    parse_object,
    read_body,
    replay,
    with_fields,
)
from stacked.api.errors import INTERNAL, INTERNAL_CODE, not_served, oci_code, to_openai, to_plain
from stacked.api.gate import Gate, is_upload
from stacked.api.names import MODEL_HEADERS, names_of
from stacked.api.replies import Reshaped, Tagged, respond_error
from stacked.api.targets import (
    PREFIX,
    Target,
    app_path,
    canonical,
    inner_path,
    is_card,
    is_control,
    is_open,
    is_plain,
    model_target,
    predict_path,
    versioned,
)
from stacked.core import header_form, short
from stacked.engine.engine import Loaded
from stacked.engine.openai import Selection, selected
from stacked.engine.parameters import INFORMATIVE, UNREAD, is_unread, known_parameters
from stacked.errors import DrainExpired, ParameterInvalid, ParameterUnsupported, StackedError
from stacked.groups.routing import Route
from stacked.service import Service

logger = logging.getLogger("stacked.api")

_TRUE = frozenset({"true", "1", "yes"})
# Admission has read these; the engine's app must not read them once more.
_SAGEMAKER = frozenset(name.encode() for name in MODEL_HEADERS if name.startswith("x-amzn-"))


class Gateway:
    """The outermost ASGI app: model requests to vLLM's app with a lease, the rest to `ours`."""

    def __init__(self, service: Service, ours: ASGIApp, gate: Gate | None = None) -> None:
        """`gate`: who may come in; None lets every request in."""
        self._service = service
        self._ours = ours
        self._gate = gate
        self._known: tuple[Any, Mapping[str, frozenset[str]]] = (None, {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no WebSocket of vLLM's is open; ours has none
            await self._ours(scope, receive, send)
            return
        headers = Headers(scope=scope)
        id = request_ids.begin(headers.get(request_ids.HEADER))
        tagged = Tagged(send, {request_ids.HEADER: id})
        raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        method = scope["method"]
        deployment, path, below = inner_path(canonical(raw.decode("latin-1")))
        path = versioned(method, path)
        # A copy, because the server under us must go on seeing a HEAD as one.
        scope = {**scope, "path": app_path(path)}
        target = model_target(method, path, below)
        plain = target.plain if target else is_plain(path)
        try:
            if self._gate is not None:
                receive = await self._gate.authenticate(scope, receive, deployment=deployment)
            if deployment is not None:
                self._service.check_served(deployment)
            scope, receive = await self._decoded(scope, receive)
            if target is not None:
                await self._run_model(target, scope, receive, tagged)
                return
            if method == "HEAD" and not is_control(path):  # whose artifacts answer it themselves
                scope["method"] = "GET"
            if is_open(method, path) and not (is_card(path) and scope["method"] == "GET"):
                out = tagged if plain else _in_openai_shape(tagged, method, path)
                await self._vllm(scope, receive, out)
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

    async def _decoded(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """The request without its content coding. What was signed is the body as it was sent."""
        headers = Headers(scope=scope)
        coding = ",".join(headers.getlist("content-encoding"))
        if not coding or is_upload(scope["method"], scope["path"]):
            return scope, receive
        limit = self._service.config.server.max_body_bytes
        body = decode(await read_body(receive, limit, headers.get("content-length")), coding, limit)
        kept = _without(scope["headers"], b"content-encoding", b"content-length")
        length = (b"content-length", str(len(body)).encode())
        return {**scope, "headers": [*kept, length]}, replay(body, receive)

    async def _run_model(
        self, target: Target, scope: Scope, receive: Receive, send: Tagged
    ) -> None:
        headers = Headers(scope=scope)
        limit = self._service.config.server.max_body_bytes
        body = await read_body(receive, limit, headers.get("content-length"))
        tree = parse_object(body) if body else {}
        cut = Cut()
        names = names_of(target.model, scope["headers"], tree)
        admission = self._service.admit(names, cut.ask)
        route = admission.route
        with admission.lease, _counted(route, send) as labels:
            send.headers |= _route_headers(route)
            path = self._path(target, headers, tree)
            known = self._parameters(path)
            self._check_parameters(path, tree, known, lenient=target.oci)
            streams = known is None or "stream" in known
            body = _body_for_vllm(body, tree, target, headers, route, streams)
            send.cut = cut
            inner = {
                **scope,
                "path": path,
                "raw_path": path.encode(),
                "headers": _inner_headers(scope["headers"], len(body), target.oci),
            }
            token = selected.set(
                Selection(route.label, route.handle, partial(metrics.tokens, *labels))
            )
            try:
                given = replay(body, partial(cut.or_message, receive))
                await self._vllm(inner, given, _shaped(send, target, path))
            finally:
                selected.reset(token)
            if cut.asked and not send.ended:
                await send.cut_off(_overdue(route), target.plain)

    async def _vllm(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._service.openai_app(scope, receive, send)

    def _path(self, target: Target, headers: Headers, tree: dict[str, Any]) -> str:
        """The path of vLLM's app: the request's own, the header `route`'s, or the body's.

        Raises ParameterInvalid for a `route` that is none, or not the path's.
        """
        named = {route.strip() for route in headers.getlist("route")} if target.oci else set()
        for route in named:
            found = model_target("POST", route)
            if found is None or found.path is None or not self._takes_post(route):
                raise ParameterInvalid(
                    f"header route: {route[:80]!r} is not an endpoint that runs a model here; "
                    "send one such as /v1/chat/completions, or leave the header out"
                )
        paths = named | ({target.path} if target.path else set())
        if len(paths) > 1:
            raise ParameterInvalid(f"header route and path differ: {' and '.join(sorted(paths))}")
        return paths.pop() if paths else predict_path(tree, self._service.predict_endpoint)

    def _takes_post(self, path: str) -> bool:
        scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "headers": []}
        routes = self._service.openai_app.routes
        return any(route.matches(scope)[0] is Match.FULL for route in routes)

    def _parameters(self, path: str) -> frozenset[str] | None:
        """What vLLM's app knows at a path; None where it does not say."""
        app = self._service.openai_app
        if self._known[0] is not app:
            self._known = (app, known_parameters(app))
        return self._known[1].get(path)

    def _check_parameters(
        self, path: str, tree: Mapping[str, Any], known: frozenset[str] | None, *, lenient: bool
    ) -> None:
        for name, value in tree.items():
            if is_unread(path, name, value):
                raise ParameterUnsupported(
                    f"parameter {name!r} has no effect in vLLM, so that the answer would not be "
                    f"the one that is asked for; leave it out (got {value!r:.80})"
                )
        if known is None:
            return
        unknown = tree.keys() - known - UNREAD.keys() - INFORMATIVE
        asked = self._service.config.server.unknown_parameters
        if not unknown:
            return
        if lenient if asked is None else asked == "ignore":
            told = ", ".join(f"{name:.40}" for name in sorted(unknown)[:8])
            logger.info("%s: ignored %d unknown parameters: %s", path, len(unknown), told)
            return
        name = min(unknown)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ParameterInvalid(f"unknown parameter {name[:80]!r}{hint}")


@contextlib.contextmanager
def _counted(route: Route[Loaded], send: Tagged) -> Iterator[tuple[str, str]]:
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


def _overdue(route: Route[Loaded]) -> DrainExpired:
    return DrainExpired(
        f"model {route.label!r} was replaced, and this request outlasted the drain deadline; "
        "send it again"
    )


def _shaped(send: Send, target: Target, path: str) -> Send:
    """`send` for vLLM's app: its errors in the shape of this surface."""
    if target.plain:
        return Reshaped(send, to_plain, bare=True)
    return _in_openai_shape(send, "POST", path, bare=target.oci)


def _in_openai_shape(send: Send, method: str, path: str, *, bare: bool = False) -> Send:
    if path.startswith("/v2/"):  # Cohere's, with a shape of its own
        return send

    def shape(body: bytes, status: int) -> bytes:
        return to_openai(body, status, not_served(method, path, status))

    return Reshaped(send, shape, bare=bare)


def _body_for_vllm(
    body: bytes,
    tree: dict[str, Any],
    target: Target,
    headers: Headers,
    route: Route[Loaded],
    streams: bool,
) -> bytes:
    """The body with the model and the stream that other places than the body ask for."""
    if not tree:
        return body
    fields: dict[str, Any] = {}
    if tree.get("model") is None:
        fields["model"] = route.label
    asked = target.oci and headers.get("enable-streaming", "").lower() in _TRUE
    if streams and (target.stream or asked):
        fields["stream"] = True
    return with_fields(body, tree, fields)


def _route_headers(route: Route[Loaded]) -> dict[str, str]:
    headers = {
        "model-ocid": route.model_id,
        "model-digest": route.digest or "base",
        "model-generation": str(route.generation),
    }
    return headers | ({"model-key": header_form(route.key)} if route.key else {})


def _inner_headers(
    headers: list[tuple[bytes, bytes]], length: int, oci: bool
) -> list[tuple[bytes, bytes]]:
    """The request's headers for a body that is whole: a length, and no transfer coding.

    On `/predict` a body that parsed is JSON, whatever a plain `curl -d` called it; on `/v1` vLLM's
    own rule holds.
    """
    dropped = [b"content-length", b"transfer-encoding", *_SAGEMAKER]
    kept = _without(headers, *dropped, *([b"content-type"] if oci else []))
    kept.append((b"content-length", str(length).encode()))
    return [*kept, (b"content-type", b"application/json")] if oci else kept


def _without(headers: list[tuple[bytes, bytes]], *names: bytes) -> list[tuple[bytes, bytes]]:
    return [pair for pair in headers if pair[0].lower() not in names]
