"""The outermost ASGI app: authentication, which model a request means, and its lease.

A request is admitted once, and its lease is released when it ends, however it ends.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from stacked.api import request_ids
from stacked.api.access import Access
from stacked.api.bodies import ClientGone, Cut, decode, read_body
from stacked.api.cors import LocalGate
from stacked.api.errors import (
    INTERNAL,
    INTERNAL_CODE,
    not_served,
    oci_code,
    to_openai,
    to_plain,
    to_tensors,
)
from stacked.api.gate import METRICS, Gate, is_upload
from stacked.api.limits import Intake, Limits
from stacked.api.replies import Reshaped, Tagged, respond_error
from stacked.callers import ANYONE, NOBODY, Caller, called_by, caller_of
from stacked.core import header_form
from stacked.errors import DrainExpired, EngineDead, NotAuthenticated, StackedError
from stacked.groups.routing import Route
from stacked.outcomes import Outcomes
from stacked.service import Service
from stacked.serving import Report
from stacked.serving.bodies import replay
from stacked.serving.targets import (
    FEEDBACK,
    HEALTH_PATHS,
    PREFIX,
    Target,
    is_control,
    is_listing,
    is_open,
    is_tensors,
    place_of,
)
from stacked.usage import Usage

logger = logging.getLogger("stacked.api")


class Gateway:
    """Model requests to what is served, with a lease; the rest to `ours`."""

    def __init__(
        self,
        service: Service,
        ours: ASGIApp,
        gate: Gate | LocalGate | None = None,
        usage: Usage | None = None,
        outcomes: Outcomes | None = None,
    ) -> None:
        """`gate` authenticates requests; None accepts every request.

        `usage` counts them, `outcomes` what those of experiments got.
        """
        self._service = service
        self._ours = ours
        self._gate = gate
        self._usage = usage
        self._outcomes = outcomes
        self._limits = Limits(service.config.server)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no WebSocket of vLLM's is allowed, and we have none
            await self._ours(scope, receive, send)
            return
        headers = Headers(scope=scope)
        id = request_ids.begin(headers.get(request_ids.HEADER) or headers.get(request_ids.VLLMS))
        raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        method = scope["method"]
        deployment, path, for_app, target, plain = place_of(method, raw.decode("latin-1"))
        if is_tensors(path):
            send = Reshaped(send, to_tensors, bare=False)
        tagged = Tagged(send, {request_ids.HEADER: id})
        # A copy, because the server must still see a HEAD as one.
        scope = {**scope, "path": for_app}
        receive = intake = Intake(receive, scope, self._limits)
        usage = self._usage if target is not None else None
        probe = self._is_probe(path)
        access = Access(
            id, method, path, usage, self._outcomes, headers=scope["headers"], routine=probe
        )
        try:
            if self._gate is None:
                scope.update(called_by(ANYONE))
            else:
                receive = await self._gate.authenticate(scope, receive, deployment=deployment)
            caller = caller_of(scope)
            access.caller = caller.name
            if deployment is not None:
                self._service.deployments.check_served(deployment)
            if target is not None:
                request_ids.hold_content()
                with self._limits.admitted(caller, tagged.headers):
                    scope, receive = await self._decoded(scope, receive, intake)
                    await self._run_model(target, scope, receive, tagged, access)
            elif path == FEEDBACK and method == "POST":  # as many as requests to models
                with self._limits.admitted(caller, tagged.headers):
                    scope, receive = await self._decoded(scope, receive, intake)
                    body = await self._body(scope, receive)
                    await self._ours(scope, replay(body, receive), tagged)
            else:
                tagged.headers |= self._limits.rates.headers(caller)
                scope, receive = await self._decoded(scope, receive, intake)
                await self._pass_on(path, plain, scope, receive, tagged)
        except ClientGone:
            return
        except StackedError as error:
            access.error = error.code
            if (known := caller_of(scope)) is not NOBODY:  # also one who may not do this
                access.caller = known.name
            if tagged.started:
                raise
            await self._refuse(error, scope, tagged, plain, PREFIX if deployment else path)
        except Exception:  # a fault of ours: the client gets a whole answer, the log the traceback
            access.error = INTERNAL_CODE
            if tagged.started:
                raise
            logger.exception("%s %s failed", method, path)
            await respond_error(StackedError(INTERNAL), plain, tagged, INTERNAL_CODE)
        finally:
            intake.release()
            access.end(tagged)

    async def _pass_on(
        self, path: str, plain: bool, scope: Scope, receive: Receive, tagged: Tagged
    ) -> None:
        """Have our routes answer, or vLLM's app where it is open: no model runs."""
        method = scope["method"]
        if method == "HEAD" and not is_control(path):  # whose artifacts handle HEAD themselves
            scope["method"] = "GET"
        listing = is_listing(path) and scope["method"] == "GET"
        if is_open(method, path) and not listing and path != METRICS:
            out = tagged if plain else _in_openai_shape(tagged, method, path)
            await self._service.app(scope, receive, out)
        else:
            await self._ours(scope, receive, tagged)

    async def _refuse(
        self, error: StackedError, scope: Scope, tagged: Tagged, plain: bool, path: str
    ) -> None:
        tagged.headers |= self._limits.rates.headers(caller_of(scope))
        if self._gate is not None and isinstance(error, NotAuthenticated):
            tagged.headers["www-authenticate"] = self._gate.challenge
        await respond_error(error, plain, tagged, oci_code(error, path))

    def _is_probe(self, path: str) -> bool:
        """Whether a path is read every few seconds, by platforms and collectors of metrics."""
        return path in HEALTH_PATHS or path in (METRICS, self._service.config.server.health_path)

    async def _decoded(
        self, scope: Scope, receive: Receive, intake: Intake
    ) -> tuple[Scope, Receive]:
        """The request without its content coding. What was signed is the body as it was sent."""
        headers = Headers(scope=scope)
        coding = ",".join(headers.getlist("content-encoding"))
        if not coding or is_upload(scope["method"], scope["path"]):
            return scope, receive
        limit = self._service.config.server.max_body_bytes
        body = decode(await read_body(receive, limit, headers.get("content-length")), coding, limit)
        intake.becomes(len(body))
        others = _without(scope["headers"], b"content-encoding", b"content-length")
        length = (b"content-length", str(len(body)).encode())
        return {**scope, "headers": [*others, length]}, replay(body, receive)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self._service.config.server.max_body_bytes
        return await read_body(receive, limit, Headers(scope=scope).get("content-length"))

    async def _run_model(
        self, target: Target, scope: Scope, receive: Receive, send: Tagged, access: Access
    ) -> None:
        body = await self._body(scope, receive)
        # So that the id in an answer is that of its request, by which feedback comes.
        others = _without(scope["headers"], request_ids.VLLMS.encode())
        scope = {**scope, "headers": [*others, (request_ids.VLLMS.encode(), access.id.encode())]}
        if access.span is not None:
            scope["headers"] = access.span.passed_on(scope["headers"])
        cut = Cut()
        await self._service.opened(_seen(scope))
        route, lease, answer, sequences = self._service.admit(target, scope, body, cut.ask)
        caller, limits = caller_of(scope), self._limits
        with (
            lease,
            limits.queued(caller, route.label, sequences),
            cut.within(limits.config.total_seconds),
        ):
            access.admitted(route)
            send.headers |= _route_headers(route)
            send.cut = cut
            report = Report(partial(self._count, access, caller), access.waited)
            await answer(partial(cut.or_message, receive), _shaped(send, target), report)
            if cut.asked and not send.ended:
                error = _cut_short(cut.error, route, target, send.started)
                access.error = error.code
                await send.cut_off(error, target.plain)

    def _count(
        self, access: Access, caller: Caller, prompt: int, generated: int, at_length: bool
    ) -> None:
        access.count(prompt, generated, at_length)
        self._limits.rates.charge(caller, prompt + generated)


def _seen(scope: Scope) -> int:
    """The generation of an answer that the client has, by a header of that. Or 0."""
    value = Headers(scope=scope).get("model-generation", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else 0


def _cut_short(
    error: StackedError | None, route: Route[Any], target: Target, started: bool
) -> StackedError:
    """Why a request was ended; if its engine died, whether it may be sent again."""
    if error is None:
        return DrainExpired(
            f"model {route.label!r} was replaced, and this request outlasted the drain deadline; "
            "send it again"
        )
    if not isinstance(error, EngineDead):
        return error
    if started:
        again = "the answer is incomplete; sent again, the request gets a new one from its start"
    elif target.path == "/v1/responses":
        again = (
            "nothing of the answer was sent; unless the server may call tools for the request, it "
            "is safe to send it again"
        )
    else:
        again = "nothing of the answer was sent, and it is safe to send the request again"
    return EngineDead(f"{error}: {again}")


def _shaped(send: Send, target: Target) -> Send:
    """`send` for the app that answers: its errors in the shape of this surface."""
    if target.path is None or target.plain:
        return Reshaped(send, to_plain, bare=True)
    return _in_openai_shape(send, "POST", target.path, bare=target.oci)


def _in_openai_shape(send: Send, method: str, path: str, *, bare: bool = False) -> Send:
    if path.startswith("/v2/"):  # Cohere's, which has its own shape
        return send

    def shape(body: bytes, status: int) -> bytes:
        return to_openai(body, status, not_served(method, path, status))

    return Reshaped(send, shape, bare=bare)


def _route_headers(route: Route[Any]) -> dict[str, str]:
    headers = {
        "model-ocid": route.model_id,
        "model-digest": route.digest or "base",
        "model-generation": str(route.generation),
    }
    if route.key:
        headers["model-key"] = header_form(route.key)
    if route.exposure is not None:
        headers["model-experiment"] = header_form(route.exposure.experiment)
        headers["model-arm"] = header_form(route.exposure.arm)
    return headers


def _without(headers: list[tuple[bytes, bytes]], *names: bytes) -> list[tuple[bytes, bytes]]:
    return [pair for pair in headers if pair[0].lower() not in names]
