"""Spans: none and no import without the setting; with it, of requests, admission and updates."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stacked import tracing
from stacked.api.access import Access
from stacked.api.replies import Tagged
from stacked.core import ModelId
from stacked.errors import EngineLoadFailed, StackedError
from stacked.groups.routing import Route
from tests.groups.test_routing import BASE, member
from tests.test_live import FakeEngine, Notes, serving

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracers", [provider.get_tracer("stacked")])
    token = tracing._current.set(None)
    yield exporter
    tracing._current.reset(token)


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def reply(status: int | None) -> Tagged:
    async def nowhere(message: Any) -> None: ...

    made = Tagged(nowhere, {})
    made.status = status
    return made


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_without_the_setting_nothing_is_imported_and_there_are_no_spans() -> None:
    program = (
        "import sys; from stacked import tracing; from stacked.api.access import Access\n"
        "assert Access('1', 'GET', '/x', headers=[(b'traceparent', b'x')]).span is None\n"
        "assert tracing.of_work('x', 0.0) is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_request_is_below_its_callers_span_and_above_the_engines(
    spans: InMemorySpanExporter,
) -> None:
    access = Access("1", "POST", "/predict", headers=[(b"TraceParent", PARENT), (b"x", b"y")])
    assert access.span is not None
    passed = dict(access.span.passed_on([(b"traceparent", PARENT), (b"x", b"y")]))
    access.admitted(Route("sql", "sql", ModelId("ocid1.x.y.z"), None, None, 3))
    access.waited(0.0)
    access.end(reply(200))
    found = by_name(spans)
    request = found["stacked.request"]
    assert request.parent is not None
    assert f"{request.parent.span_id:x}" == "b7ad6b7169203331"
    assert request.attributes is not None
    assert (request.attributes["stacked.key"], request.attributes["stacked.status"]) == ("sql", 200)
    assert "stacked.error" not in request.attributes
    assert passed.keys() == {b"traceparent", b"x"}
    assert passed[b"traceparent"].decode().split("-")[1:3] == [
        "0af7651916cd43dd8448eb211c80319c",
        f"{request.context.span_id:016x}",
    ]
    for name in ("stacked.admission", "stacked.queue"):
        parent = found[name].parent
        assert parent is not None
        assert parent.span_id == request.context.span_id
        assert 0 <= seconds(found[name]) <= seconds(request)


@pytest.mark.parametrize(
    ("status", "failed"), [(200, False), (404, False), (500, True), (None, True)]
)
def test_a_fault_is_one_of_its_span(
    spans: InMemorySpanExporter, status: int | None, failed: bool
) -> None:
    Access("1", "GET", "/x").end(reply(status))
    assert by_name(spans)["stacked.request"].status.is_ok is not failed


def test_work_is_below_the_request_that_began_it(spans: InMemorySpanExporter) -> None:
    request = Access("1", "PUT", "/x")
    work = tracing.of_work("stacked.update", time.monotonic())
    assert work is not None
    work.end({})
    request.end(reply(202))
    found = by_name(spans)
    parent = found["stacked.update"].parent
    assert parent is not None
    assert parent.span_id == found["stacked.request"].context.span_id


def test_a_probe_has_no_span(spans: InMemorySpanExporter) -> None:
    Access("1", "GET", "/health", routine=True).end(reply(200))
    assert by_name(spans) == {}


PHASES = ["planning", "staging", "verifying", "committing", "switching", "draining", "removing"]


async def test_every_phase_of_an_update_is_a_part_of_its_span(spans: InMemorySpanExporter) -> None:
    live = await serving(FakeEngine(), member("a", 1))
    await live.update(BASE, (member("a", 2),), Notes())
    update = by_name(spans)["stacked.update"]
    parts = [span for span in spans.get_finished_spans() if span is not update]
    assert [part.name for part in parts] == [f"stacked.update.{name}" for name in PHASES]
    assert {part.parent.span_id for part in parts if part.parent} == {update.context.span_id}
    assert update.status.is_ok
    assert sum(map(seconds, parts)) <= seconds(update)


async def test_the_phase_that_failed_is_marked(spans: InMemorySpanExporter) -> None:
    engine = FakeEngine()
    live = await serving(engine, member("a", 1))
    engine.fails["verify"] = EngineLoadFailed("broken")
    with pytest.raises(StackedError):
        await live.update(BASE, (member("a", 2),), Notes())
    failed = {name for name, span in by_name(spans).items() if not span.status.is_ok}
    assert failed == {"stacked.update", "stacked.update.verifying"}
    assert by_name(spans)["stacked.update"].status.description == "EngineLoadFailed"
