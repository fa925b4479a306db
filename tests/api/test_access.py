"""The line of a request: once for each, with how it ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.types import Message

from stacked.api.gateway import Gateway
from stacked.service import Service
from tests.api.doubles import Double, client_of, ours, vllm


class Lines(logging.Handler):
    """What was logged, as fields."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.fields.append(cast(Any, record).fields)


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    logger, handler = logging.getLogger("stacked.access"), Lines()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.fields
    logger.setLevel(before)
    logger.removeHandler(handler)


async def test_every_request_has_one_line(lines: list[dict[str, Any]]) -> None:
    http = client_of(Double(vllm()))
    await http.post("/predict", json={"prompt": "x"}, headers={"model-key": "a"})
    await http.post("/v1/completions", json={"prompt": "x", "model": "nobody"})
    await http.get("/v1/models")
    await http.get("/nowhere")
    shown = [(line["path"], line["status"], line.get("key"), line["error"]) for line in lines]
    assert shown == [
        ("/predict", 200, "a", None),
        ("/v1/completions", 404, None, "KeyUnknown"),
        ("/v1/models", 200, None, None),
        ("/nowhere", 404, None, None),
    ]
    assert all(line["ended"] == "whole" for line in lines)
    assert lines[0]["generation"] == 1
    assert lines[0]["digest"] == "base"
    assert 0 <= lines[0]["first"] <= lines[0]["seconds"]


async def test_only_a_probe_that_fails_has_a_line(lines: list[dict[str, Any]]) -> None:
    http = client_of(Double(vllm(), health_path="/alive"))
    for path in ("/health", "/ping", "/metrics", "/alive"):
        await http.get(path)
    assert [(line["path"], line["status"]) for line in lines] == [("/ping", 404), ("/alive", 404)]


async def test_a_fault_of_ours_is_an_error_of_the_line(lines: list[dict[str, Any]]) -> None:
    broken = FastAPI()

    @broken.get("/stacked/broken")
    async def fail() -> None:
        raise RuntimeError("marked")

    await client_of(Double(vllm()), broken).get("/stacked/broken")
    assert (lines[0]["status"], lines[0]["error"]) == (500, "InternalServerError")
    assert "marked" not in str(lines)


async def test_a_client_that_leaves_is_told_apart(lines: list[dict[str, Any]]) -> None:
    async def leave() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    await Gateway(cast(Service, Double(vllm())), ours())(scope, leave, send)
    assert (lines[0]["status"], lines[0]["ended"]) == (None, "left")


async def test_a_long_path_is_cut(lines: list[dict[str, Any]]) -> None:
    await client_of(Double(vllm())).get("/" + "x" * 5000)
    assert len(lines[0]["path"]) == 200
