"""The line of a request: once for each, with how it ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY
from starlette.types import Message

from stacked.api.access import Access
from stacked.api.gate import open_gate
from stacked.api.gateway import Gateway
from stacked.api.replies import Tagged
from stacked.config import AuthConfig
from stacked.core import Digest, ModelId
from stacked.errors import KeyUnknown, NotReady
from stacked.experiments.assignment import Exposure
from stacked.groups.routing import Route
from stacked.keys import Rights, create
from stacked.outcomes import Outcomes
from stacked.registry import Registry
from stacked.registry.outcomes import Tally
from stacked.registry.usage import Counts, Used
from stacked.service import Service
from stacked.usage import Usage
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
    await http.post("/stacked/echo", json={})
    await http.get("/nowhere")
    shown = [(line["path"], line["status"], line.get("key"), line.get("error")) for line in lines]
    assert shown == [
        ("/predict", 200, "a", None),
        ("/v1/completions", 404, None, "KeyUnknown"),
        ("/stacked/echo", 200, None, None),
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
    assert (lines[0].get("status"), lines[0]["ended"]) == (None, "left")


async def test_usage_is_by_credential_and_key_and_only_of_models(tmp_path: Path) -> None:
    usage = Usage()
    gateway = Gateway(cast(Service, Double(vllm())), ours(), None, usage)
    transport = httpx.ASGITransport(app=gateway)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        await http.post("/predict", json={"prompt": "x"}, headers={"model-key": "a"})
        await http.post("/predict", json={"prompt": "x"}, headers={"model-key": "a"})
        await http.post("/predict", json={"prompt": "x"}, headers={"model-key": "nobody"})
        await http.get("/v1/models")
    with Registry(tmp_path / "registry.sqlite") as registry:
        usage.begin(registry.usage, timedelta(days=1))
        await usage.close()
        found = registry.usage.totals(datetime(2000, 1, 1, tzinfo=UTC))
    assert found == [
        Used("anyone", "a", Counts(requests=2)),
        Used("anyone", "", Counts(requests=1, errors=1)),
    ]


async def test_who_may_not_do_it_is_named_and_who_is_not_known_is_not(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    rights = Rights(keys=frozenset({"a"}), requests_per_minute=9)
    token = create(tmp_path, "held", rights)
    usage = Usage()
    service = Double(vllm(), auth=AuthConfig(bearer=True))
    gate = open_gate(cast(Any, service).config, tmp_path)
    gateway = Gateway(cast(Service, service), ours(), gate, usage)
    transport = httpx.ASGITransport(app=gateway)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        for headers in ({"api-key": token}, {"api-key": token[:-1] + "x"}):
            for method, path in (("GET", "/stacked/status"), ("POST", "/v1/responses/x/cancel")):
                answer = await http.request(method, path, headers=headers)
                limit = answer.headers.get("x-ratelimit-limit-requests")
                assert (answer.status_code, limit) in ((403, "9"), (401, None))
    assert [(line["status"], line.get("credential")) for line in lines] == [
        *[(403, "held")] * 2,
        *[(401, None)] * 2,
    ]
    assert usage.pending == {("held", ""): Counts(requests=1, errors=1)}


async def test_a_request_to_a_model_that_gets_none_is_in_the_metrics() -> None:
    def counted(status: str) -> float:
        labels = {"key": "", "digest": "", "status": status}
        return REGISTRY.get_sample_value("stacked_requests_total", labels) or 0

    before = counted("4xx"), counted("5xx")
    for error in (KeyUnknown("marked"), NotReady("marked")):
        service = Double(vllm())

        def refuse(*_: Any, why: Exception = error) -> Any:
            raise why

        service.admit = refuse  # type: ignore[method-assign]
        transport = httpx.ASGITransport(app=Gateway(cast(Service, service), ours(), None, Usage()))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
            await http.post("/predict", json={"prompt": "x"})
            await http.get("/v1/models")
    assert (counted("4xx"), counted("5xx")) == (before[0] + 1, before[1] + 1)


async def nowhere(message: Message) -> None: ...


def test_tokens_that_come_after_the_end_are_counted() -> None:
    usage = Usage()
    access = Access("1", "POST", "/predict", usage)
    access.caller = "anyone"
    route = Route("sql", "sql", ModelId("ocid1.x.y.z"), None, None, 1)
    access.admitted(route)
    access.end(Tagged(nowhere, {}))
    access.count(3, 2, False)
    assert usage.pending == {("anyone", "sql"): Counts(1, 1, 3, 2)}


class Gathered:
    """In place of the outcomes: what they were told."""

    def __init__(self) -> None:
        self.tallies: list[tuple[str, Exposure, Tally]] = []

    def saw(self, exposure: Exposure) -> None:
        self.seen = exposure

    def add(self, id: str, exposure: Exposure, tally: Tally) -> None:
        assert exposure is self.seen
        self.tallies.append((id, exposure, tally))


@pytest.mark.parametrize(
    ("status", "ended", "cut", "expected"),
    [
        (200, True, False, (1, 0, 1, 5, 1)),
        (200, False, False, (1, 0, 0, 0, 0)),
        (200, True, True, (1, 1, 0, 0, 0)),
        (400, True, False, (1, 1, 0, 0, 0)),
        (None, False, False, (0, 0, 0, 0, 0)),
    ],
    ids=["whole", "left", "cut", "refused", "left before it began"],
)
async def test_what_an_answer_of_an_experiment_was(
    status: int | None, ended: bool, cut: bool, expected: tuple[int, ...]
) -> None:
    gathered, reply = Gathered(), Tagged(nowhere, {})
    exposure = Exposure("sql", "phase", "sql-v2", "pseudonym")
    route = Route("sql", "sql", ModelId("ocid1.x.y.z"), None, None, 1, exposure=exposure)
    access = Access("ID", "POST", "/predict", None, cast(Outcomes, gathered))
    access.admitted(route)
    for generated, at_length in ((3, True), (2, False)):
        access.count(1, generated, at_length)
    if status is not None:
        await reply({"type": "http.response.start", "status": status, "headers": []})
        await reply({"type": "http.response.body", "body": b"x", "more_body": not ended})
    reply.was_cut = cut
    access.end(reply)
    ((id, _, tally),) = gathered.tallies
    assert id == "ID"
    counts = (tally.answers, tally.failed, tally.whole, tally.output_tokens, tally.cut)
    assert counts == expected
    assert (tally.seconds >= tally.first_seconds > 0) == bool(tally.whole)


def test_without_an_experiment_there_is_no_outcome() -> None:
    gathered = Gathered()
    access = Access("ID", "POST", "/predict", None, cast(Outcomes, gathered))
    access.admitted(Route("sql", "sql", ModelId("ocid1.x.y.z"), None, None, 1))
    access.end(Tagged(nowhere, {}))
    assert not gathered.tallies


def test_a_line_of_an_experiment_has_arm_and_phase() -> None:
    access = Access("1", "POST", "/predict")
    route = Route("sql", "sql", ModelId("ocid1.x.y.z"), Digest("sha256:1"), None, 1)
    access.admitted(route)
    assert "arm" not in access._fields(Tagged(nowhere, {}))
    access.admitted(route._replace(exposure=Exposure("sql", "phase", "sql-v2", "pseudonym")))
    fields = access._fields(Tagged(nowhere, {}))
    assert {name: fields[name] for name in ("key", "digest", "arm", "phase")} == {
        "key": "sql",
        "digest": "sha256:1",
        "arm": "sql-v2",
        "phase": "phase",
    }


async def test_a_long_path_is_cut(lines: list[dict[str, Any]]) -> None:
    await client_of(Double(vllm())).get("/" + "x" * 5000)
    assert len(lines[0]["path"]) == 200
