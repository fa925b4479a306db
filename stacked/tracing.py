"""Spans of requests and updates, once an engine was started with vLLM's `otlp_traces_endpoint`.

They are sent by the provider that vLLM sets up for its own. Before that nothing is imported, and
there are no spans. It must not know what is traced.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

# vLLM's provider is the process's, and stays when its engine is replaced: so does what uses it.
_tracers: list[Any] = []

_HEADERS = (b"traceparent", b"tracestate")
RawHeaders = Iterable[tuple[bytes, bytes]]


def begin() -> None:
    """Make spans from now on. Idempotent."""
    from opentelemetry import trace

    _tracers[:] = [trace.get_tracer("stacked")]


class Span:
    """A piece of work and its parts. Times are those of `time.monotonic`, in seconds."""

    def __init__(self, tracer: Any, name: str, began: float, context: Any) -> None:
        self._tracer = tracer
        self._epoch = time.time_ns() - time.monotonic_ns()
        self._span = tracer.start_span(name, context, start_time=self._at(began))

    def _at(self, seconds: float) -> int:
        return self._epoch + int(seconds * 1e9)

    @property
    def _context(self) -> Any:
        from opentelemetry.trace import set_span_in_context

        return set_span_in_context(self._span)

    def part(self, name: str, began: float, ended: float, error: str = "") -> None:
        """A part that is over."""
        part = self._tracer.start_span(name, self._context, start_time=self._at(began))
        _close(part, self._at(ended), error)

    def end(self, attributes: Mapping[str, Any], error: str = "") -> None:
        """`error`: its code, if the work failed."""
        self._span.set_attributes({f"stacked.{name}": each for name, each in attributes.items()})
        _close(self._span, self._at(time.monotonic()), error)

    def passed_on(self, headers: RawHeaders) -> list[tuple[bytes, bytes]]:
        """These headers with this span as the parent of what they lead to."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, self._context)
        others = [pair for pair in headers if pair[0].lower() not in _HEADERS]
        return [*others, *((name.encode(), each.encode()) for name, each in carrier.items())]


_current: ContextVar[Span | None] = ContextVar("stacked_span", default=None)


def of_request(name: str, began: float, headers: RawHeaders) -> Span | None:
    """A span below the caller's, if the headers name one. What this request begins is below it."""
    if not _tracers:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {
        key.lower().decode(): value.decode("latin-1")
        for key, value in headers
        if key.lower() in _HEADERS
    }
    span = Span(_tracers[0], name, began, TraceContextTextMapPropagator().extract(carrier))
    _current.set(span)
    return span


def of_work(name: str, began: float) -> Span | None:
    """A span below that of the request which has begun the work."""
    if not _tracers:
        return None
    parent = _current.get()
    return Span(_tracers[0], name, began, parent._context if parent else None)


def _close(span: Any, ended: int, error: str) -> None:
    if error:
        from opentelemetry.trace import Status, StatusCode

        span.set_status(Status(StatusCode.ERROR, error))
    span.end(ended)
