"""Traces of a real server: ours and vLLM's are one, below the caller's own span."""

from __future__ import annotations

import secrets

import httpx
import pytest

from tests.api.test_live_update import follow, status, update
from tests.otlp import Collector
from tests.waiting import until

pytestmark = pytest.mark.engine


def begun() -> tuple[str, str]:
    """A trace of a caller's: its id, and the header that names it and the caller's span."""
    trace = secrets.token_hex(16)
    return trace, f"00-{trace}-{'ab' * 8}-01"


def test_a_request_is_one_trace_from_its_caller_to_the_engine(
    http: httpx.Client, traces: Collector
) -> None:
    trace, header = begun()
    body = {"prompt": "x", "max_tokens": 3, "model": "a", "ignore_eos": True}
    answer = http.post("/v1/completions", json=body, headers={"traceparent": header})
    assert answer.status_code == 200
    until(lambda: traces.of(trace).keys() >= {"stacked.request", "llm_request"})
    spans = traces.of(trace)
    request = spans["stacked.request"]
    assert request.parent == "ab" * 8
    assert spans["stacked.admission"].parent == spans["llm_request"].parent == request.id
    assert request.began <= spans["llm_request"].began <= spans["llm_request"].ended
    assert not request.failed
    assert request.attributes["stacked.id"] == answer.headers["opc-request-id"]
    assert request.attributes["stacked.generated_tokens"] == 3
    assert spans["llm_request"].attributes["gen_ai.usage.completion_tokens"] == 3


def test_an_update_is_below_the_request_that_began_it(
    http: httpx.Client, traces: Collector
) -> None:
    trace, header = begun()
    http.headers["traceparent"] = header
    work = update(http, status(http)["groupId"])
    del http.headers["traceparent"]
    assert follow(http, work)["status"] == "SUCCEEDED"
    until(lambda: "stacked.update" in traces.of(trace))
    spans = traces.of(trace)
    whole = spans["stacked.update"]
    requests = {span.id for span in traces.spans if span.name == "stacked.request"}
    assert whole.parent in requests
    parts = [span for span in spans.values() if span.parent == whole.id]
    assert spans["stacked.update.switching"] in parts
    assert len(parts) == 7
    assert all(whole.began <= part.began <= part.ended <= whole.ended for part in parts)
