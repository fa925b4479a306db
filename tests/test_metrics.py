"""Counting stays bounded however many digests come and go."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from stacked import metrics


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


def test_tokens_are_counted_by_kind() -> None:
    metrics.tokens("k", "t", 7, 3)
    metrics.tokens("k", "t", 5, 0)
    assert value("stacked_tokens_total", key="k", digest="t", kind="prompt") == 12
    assert value("stacked_tokens_total", key="k", digest="t", kind="generated") == 3


def test_series_of_digests_unused_for_longest_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_SERIES", 3)
    for digest in ("one", "two", "three", "four", "five"):
        metrics.request_began("many", digest)
        metrics.request_ended("many", digest, 404)
    assert value("stacked_requests_total", key="many", digest="one", status="4xx") is None
    assert value("stacked_requests_total", key="many", digest="five", status="4xx") == 1
