"""Counting stays bounded however many digests come and go."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import pytest
from prometheus_client import REGISTRY, Gauge, generate_latest

from stacked import metrics
from stacked.supervision.policy import Cause


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_request_is_counted_from_admission_to_end() -> None:
    metrics.request_began("k", "d")
    assert value("stacked_requests_in_flight", key="k", digest="d") == 1
    metrics.first_byte("k", "d", 0.3)
    metrics.request_ended("k", "d", 200)
    metrics.request_began("k", "d")
    metrics.request_ended("k", "d", None)
    assert value("stacked_requests_in_flight", key="k", digest="d") == 0
    assert value("stacked_requests_total", key="k", digest="d", status="2xx") == 1
    assert value("stacked_requests_total", key="k", digest="d", status="gone") == 1
    assert value("stacked_first_byte_seconds_sum", key="k", digest="d") == 0.3


def test_request_that_had_no_model_is_counted_without_one() -> None:
    before = value("stacked_requests_total", key="", digest="", status="5xx") or 0
    metrics.request_refused(503)
    assert value("stacked_requests_total", key="", digest="", status="5xx") == before + 1


def test_a_first_death_is_an_increase() -> None:
    for cause in Cause:
        shown = value("stacked_engine_deaths_total", cause=cause.value)
        assert (shown is None) == (cause is Cause.START), "what comes to be with 1 never rose to it"


def test_tokens_are_counted_by_kind() -> None:
    metrics.tokens("k", "t", 7, 3)
    metrics.tokens("k", "t", 5, 0)
    assert value("stacked_tokens_total", key="k", digest="t", kind="prompt") == 12
    assert value("stacked_tokens_total", key="k", digest="t", kind="generated") == 3


def test_queue_is_shown_as_it_is_when_somebody_looks() -> None:
    class Engine:
        slot_changes = 3
        waits: ClassVar[dict[str, int]] = {"sql": 2}

        def waiting(self) -> dict[str, int]:
            return self.waits

    metrics.watch(Engine())
    assert value("stacked_requests_waiting", key="sql") == 2
    assert value("stacked_slot_changes_total") == 3
    Engine.waits = {}
    assert value("stacked_requests_waiting", key="sql") is None
    metrics.watch(None)
    assert value("stacked_slot_changes_total") is None


def test_residency_has_the_adapters_of_now_and_no_others() -> None:
    metrics.resident({("sql", "aa"): (True, True), ("triage", "bb"): (True, False)})
    assert value("stacked_adapter_resident", key="sql", digest="aa", place="slot") == 1
    assert value("stacked_adapter_resident", key="triage", digest="bb", place="slot") == 0
    assert value("stacked_adapter_resident", key="triage", digest="bb", place="host") == 1
    metrics.resident({("sql", "aa"): (False, False)})
    assert value("stacked_adapter_resident", key="sql", digest="aa", place="host") == 0
    assert value("stacked_adapter_resident", key="triage", digest="bb", place="host") is None


def test_series_of_digests_unused_for_longest_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_SERIES", 3)
    monkeypatch.setattr(metrics, "_used", OrderedDict())
    for digest in ("one", "two", "three", "four", "five"):
        metrics.request_began("many", digest)
        metrics.request_ended("many", digest, 404)
    assert value("stacked_requests_total", key="many", digest="one", status="4xx") is None
    assert value("stacked_requests_total", key="many", digest="five", status="4xx") == 1


def test_adapters_of_vllms_gauge_are_told_by_key_and_only_those_of_now() -> None:
    labels = ["max_lora", "waiting_lora_adapters", "running_lora_adapters"]
    before = REGISTRY._names_to_collectors.get(metrics.LORA_INFO)
    if before is not None:  # of an app of vLLM's that another test has built
        REGISTRY.unregister(before)
    gauge = Gauge(metrics.LORA_INFO, "vLLM's", labels)
    served = {"sha256:aa": ["sql", "sql, too"], "sha256:bb": ["triage"]}
    metrics.name_adapters(lambda: served)
    assert REGISTRY.get_sample_value(metrics.LORA_INFO) is None, "nothing was asked yet"
    gauge.labels("4", "", "sha256:bb.2").set(10)
    gauge.labels("4", "sha256:bb.2", "sha256:aa.1,sha256:aa.9,sha256:gone.3").set(11)
    text = generate_latest(REGISTRY).decode()
    (line,) = [each for each in text.splitlines() if each.startswith(metrics.LORA_INFO + "{")]
    told = {"running_lora_adapters": "sql,sql%2C too", "waiting_lora_adapters": "triage"}
    assert REGISTRY.get_sample_value(metrics.LORA_INFO, {"max_lora": "4", **told}) == 11, line
    assert len(gauge.collect()[0].samples) == 1, "what is old is let go"
    # Another engine: vLLM takes off what begins with its name, and makes a gauge of its own.
    for collector in list(REGISTRY._collector_to_names):
        if getattr(collector, "_name", "").startswith("vllm:"):
            REGISTRY.unregister(collector)
    REGISTRY.unregister(Gauge(metrics.LORA_INFO, "vLLM's", labels))


def test_copies_are_counted_until_their_pair_is_forgotten() -> None:
    for outcome in ("same", "dropped_load", "dropped_load", "failed"):
        metrics.shadowed("sql", "next", outcome)
    metrics.shadow_scored("sql", "next", -0.5, -0.75)
    metrics.shadowed("sql", "other", "same")
    pair = {"key": "sql", "to": "next"}
    assert value("stacked_shadow_requests_total", **pair, outcome="dropped_load") == 2
    assert value("stacked_shadow_nats_total", **pair, model="served") == 0.5
    assert value("stacked_shadow_nats_total", **pair, model="shadow") == 0.75
    assert value("stacked_shadow_scored_total", **pair) == 1
    metrics.forget_shadow("sql", "next")
    assert b'to="next"' not in generate_latest()
    assert b'to="other"' in generate_latest()
