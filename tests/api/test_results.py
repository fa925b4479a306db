"""Feedback and results: over HTTP with a real registry, and on the real engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from stacked.api.gateway import Gateway
from stacked.api.routes import create_routes
from stacked.callers import ANYONE, Caller
from stacked.config import ControlConfig, ExperimentsConfig
from stacked.experiments.assignment import Exposure
from stacked.groups.routing import Routing
from stacked.outcomes import Outcomes
from stacked.registry import Registry
from stacked.registry.outcomes import Tally
from stacked.service import Service
from tests.api.doubles import ByName
from tests.api.test_live_update import follow, ok, register, status, swap, update
from tests.conftest import PROMPT, TinyModels
from tests.groups.test_arms import design, table
from tests.serving import Server
from tests.test_cli import run

GOOD = Tally(1, 0, 1, 2.0, 0.5, 10, 0)
CALLERS = {
    "anyone": ANYONE,
    "held": Caller("held", keys=frozenset({"sql"})),
    "other": Caller("other", keys=frozenset({"a"})),
}


class Rig:
    """The routes over a real registry and a routing table, without an engine."""

    def __init__(self, registry: Registry, **settings: Any) -> None:
        self.routing: Routing[str] = table(design(a=1, b=1))
        self.outcomes = Outcomes(
            ExperimentsConfig(**settings), lambda key: self.routing.arms[key].facts
        )
        self.outcomes.begin(registry.outcomes)
        self.config = ControlConfig(experiments=ExperimentsConfig(**settings))
        self.registry = registry
        service = cast(Service, self)
        app = Gateway(service, create_routes(service), cast(Any, ByName(CALLERS)))
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        self.http = httpx.AsyncClient(transport=transport, base_url="http://t")
        self.deployments = SimpleNamespace()

    def answered(self, unit: str | None, id: str, tally: Tally = GOOD) -> Exposure:
        exposure = self.routing.arms["sql"].draw(lambda kind: unit).exposure
        assert exposure is not None
        self.outcomes.saw(exposure)
        self.outcomes.add(id, exposure, tally)
        return exposure

    async def feedback(self, who: str = "anyone", **body: Any) -> httpx.Response:
        return await self.http.post("/v1/feedback", json=body, headers={"who": who})

    async def result(self, path: str = "/sql", who: str = "anyone") -> Any:
        answer = await self.http.get(f"/stacked/experiments{path}", headers={"who": who})
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    with Registry(tmp_path / "registry.sqlite") as registry:
        made = Rig(registry, metrics=3, lower_is_better=("edits",))
        yield made
        await made.outcomes.close()


async def test_feedback_is_stored_once_for_each_answer_and_metric(rig: Rig) -> None:
    rig.answered("ann", "ONE")
    first = await rig.feedback(id="chatcmpl-ONE", metric="correct", value=True)
    again = await rig.feedback(id="ONE", metric="correct", value=0)
    assert first.json() == {"recorded": 1, "replaced": 0, "refused": []}
    assert again.json() == {"recorded": 1, "replaced": 1, "refused": []}
    of_unit = await rig.feedback(experiment="sql", unit="ann", metric="stars", value=4.5)
    assert of_unit.json()["recorded"] == 1
    phase = (await rig.result())["phase"]
    arms = {m["metric"]: [(a["units"], a["mean"]) for a in m["arms"]] for m in phase["metrics"]}
    assert sorted(arms["correct"], key=str) == [(0, None), (1, 0.0)]
    assert sorted(arms["stars"], key=str) == [(0, None), (1, 4.5)]
    assert [m["share"] for m in phase["metrics"][:2]] == [True, False]


async def test_what_a_caller_may_not_use_is_as_unknown_as_what_is_not_there(rig: Rig) -> None:
    rig.answered("ann", "ONE")
    assert (await rig.feedback("held", id="ONE", metric="m", value=1)).status_code == 200
    hidden = await rig.feedback("other", id="ONE", metric="m", value=1)
    absent = await rig.feedback("other", id="TWO", metric="m", value=1)
    assert (hidden.status_code, hidden.text) == (404, absent.text)
    assert hidden.json()["error"]["code"] == "FeedbackUnknown"
    unit = {"unit": "ann", "metric": "m", "value": 1}
    assert (await rig.feedback("held", experiment="sql", **unit)).status_code == 200
    hidden, absent = [await rig.feedback("other", experiment=key, **unit) for key in ("sql", "tql")]
    assert hidden.status_code == 404
    assert hidden.text.replace("sql", "tql") == absent.text
    nobody = await rig.feedback(experiment="sql", unit="carl", metric="m", value=1)
    assert nobody.status_code == 404


async def test_several_are_stored_or_refused_one_by_one(rig: Rig) -> None:
    rig.answered("ann", "ONE")
    items: list[dict[str, Any]] = [
        {"id": "ONE", "metric": "correct", "value": 1},
        {"id": "gone", "metric": "correct", "value": 1},
        {"id": "ONE", "metric": "seconds", "value": 1},
        {"experiment": "tql", "unit": "ann", "metric": "correct", "value": 1},
        {"id": "ONE", "metric": "correct", "value": 0.5},
    ]
    report = (await rig.feedback(items=items)).json()
    assert (report["recorded"], report["replaced"]) == (2, 1)
    refused = [(each["index"], each["code"]) for each in report["refused"]]
    assert refused == [(1, "FeedbackUnknown"), (2, "FeedbackInvalid"), (3, "FeedbackUnknown")]


@pytest.mark.parametrize(
    "body",
    [
        {"metric": "m", "value": 1},
        {"id": "x", "experiment": "sql", "unit": "ann", "metric": "m", "value": 1},
        {"experiment": "sql", "metric": "m", "value": 1},
        {"id": "x", "metric": "m", "value": "1"},
        {"id": "x", "metric": "m", "value": 1e13},
        {"id": "x", "metric": "m", "value": None},
        {"id": "x", "metric": "", "value": 1},
        {"id": "x", "metric": "a b", "value": 1},
        {"id": "x", "metric": "m" * 65, "value": 1},
        {"id": "x" * 301, "metric": "m", "value": 1},
        {"id": "x", "metric": "m", "value": 1, "note": "hi"},
        {"items": []},
        {"items": [{"id": "x", "metric": "m", "value": 1}] * 1001},
        {"items": {}},
        [],
    ],
)
async def test_feedback_of_another_form_is_refused(rig: Rig, body: Any) -> None:
    answer = await rig.http.post("/v1/feedback", json=body, headers={"who": "anyone"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_numbers_that_json_has_not_are_refused(rig: Rig) -> None:
    for value in ("NaN", "Infinity", "1e999"):
        raw = f'{{"id": "x", "metric": "m", "value": {value}}}'
        headers = {"who": "anyone", "content-type": "application/json"}
        answer = await rig.http.post("/v1/feedback", content=raw, headers=headers)
        assert answer.status_code == 400, value


async def test_a_body_that_is_too_large_is_not_read_to_its_end(rig: Rig) -> None:
    size = rig.config.server.max_body_bytes + 1
    answer = await rig.http.post("/v1/feedback", content=b" " * size, headers={"who": "anyone"})
    assert answer.status_code == 413


async def test_an_experiment_without_answers_is_there(rig: Rig) -> None:
    report = await rig.result()
    assert (report["served"], report["others"]) == (True, [])
    assert [(a["key"], a["share"], a["units"]) for a in report["phase"]["arms"]] == [
        ("a", 0.5, 0),
        ("b", 0.5, 0),
    ]
    assert report["phase"]["metrics"][0]["sentences"] == ["No unit has 'error' yet."]
    (line,) = (await rig.result(""))["items"]
    assert (line["key"], line["served"]) == ("sql", True)
    absent = await rig.http.get("/stacked/experiments/tql", headers={"who": "anyone"})
    assert (absent.status_code, absent.json()["code"]) == (404, "RecordAbsent")


async def test_arms_are_compared_by_every_metric_and_earlier_phases_stay(rig: Rig) -> None:
    items: list[dict[str, Any]] = []
    for at in range(200):
        arm = rig.answered(f"user-{at}", f"ID-{at}").arm
        for metric in ("correct", "edits"):
            items.append({"id": f"ID-{at}", "metric": metric, "value": int(arm == "b")})
    assert (await rig.feedback(items=items)).json()["recorded"] == 400
    rig.answered(None, "drawn")
    report = await rig.result()
    phase = report["phase"]
    assert phase["served"]
    assert phase["drawn"] == 1
    assert not phase["mismatch"]
    assert sum(arm["units"] for arm in phase["arms"]) == 200
    metrics = {each["metric"]: each for each in phase["metrics"]}
    assert list(metrics) == ["correct", "edits", *list(metrics)[2:]]
    verdicts = {name: each["arms"][1]["verdict"] for name, each in metrics.items()}
    assert verdicts["correct"] == "better"
    assert verdicts["edits"] == "worse"
    assert verdicts["seconds"] == "open"
    assert metrics["correct"]["arms"][1]["difference"]["low"] > 0
    assert metrics["correct"]["arms"][0]["difference"] is None
    rig.routing = table(design(b=1))
    after = await rig.result()
    assert after["phase"]["arms"][0]["units"] == 0
    assert [each["phase"] for each in after["others"]] == [phase["phase"]]
    old = await rig.result(f"/sql?phase={phase['phase']}&metric=correct")
    assert (old["served"], old["phase"]["served"]) == (True, False)
    assert [each["metric"] for each in old["phase"]["metrics"]] == ["correct"]
    assert (await rig.feedback(id="ID-3", metric="correct", value=1)).status_code == 200


# -- the real engine ----------------------------------------------------------------------------

EXPERIMENTS = [{"key": "sql", "arms": [{"key": "x"}, {"key": "y"}]}]
UNITS = 80


def answered(client: httpx.Client, at: int) -> tuple[str, str]:
    """The arm of a user's answer, and its id: that of its header, its body or its stream."""
    said = (
        {"messages": [{"role": "user", "content": PROMPT}]} if at % 4 == 1 else {"prompt": PROMPT}
    )
    body = {**said, "model": "sql", "max_tokens": 2, "temperature": 0, "stream": at % 4 == 2}
    path = "/v1/chat/completions" if "messages" in said else "/v1/completions"
    answer = client.post(path, json=body, headers={"experiment-unit": f"user-{at}"})
    assert answer.status_code == 200, answer.text
    id = answer.headers["opc-request-id"] if at % 4 > 1 else answer.json()["id"]
    return answer.headers["model-arm"], id


@pytest.mark.engine
def test_the_better_arm_is_found_and_promoted_and_may_be_brought_back(
    server: Server, tiny_models: TinyModels
) -> None:
    with server.client() as client:
        before = status(client)["groupId"]
        try:
            ids = {name: register(client, tiny_models.adapters[name]) for name in ("a", "b")}
            members = {"x": ids["a"], "y": ids["b"]}
            metadata = {"stacked.experiments": json.dumps(EXPERIMENTS)}
            assert swap(client, members, metadata)["status"] == "SUCCEEDED"
            phase = _with_feedback(client)
            metrics = {each["metric"]: each["arms"] for each in phase["metrics"]}
            assert [arm["verdict"] for arm in metrics["correct"]] == [None, "better"]
            for metric, mean in (("length", 1.0), ("error", 0.0), ("output_tokens", 2.0)):
                assert [arm["mean"] for arm in metrics[metric]] == [mean, mean], metric
            assert all(0 < arm["mean"] < 60 for arm in metrics["first_seconds"])
            shown = client.get("/metrics").text
            assert 'stacked_experiment_exposures_total{arm="y",experiment="sql"}' in shown
            _promoted(server, client, phase)

            assert run("rollback", "--url", server.url).returncode == 0
            back = ok(client.get("/stacked/experiments/sql"))["phase"]
            assert back["phase"] == phase["phase"]
            assert sum(arm["units"] for arm in back["arms"]) == UNITS
            assert {answered(client, at)[0] for at in range(12)} == {"x", "y"}
        finally:
            assert follow(client, update(client, before))["status"] == "SUCCEEDED"


def _with_feedback(client: httpx.Client) -> dict[str, Any]:
    """The result after answers of which those of `y` alone were correct."""
    items = []
    for at in range(UNITS):
        arm, id = answered(client, at)
        items.append({"id": id, "metric": "correct", "value": arm == "y"})
    report = ok(client.post("/v1/feedback", json={"items": items}))
    assert report == {"recorded": UNITS, "replaced": 0, "refused": []}
    phase: dict[str, Any] = ok(client.get("/stacked/experiments/sql"))["phase"]
    assert sum(arm["units"] for arm in phase["arms"]) == UNITS
    return phase


def _promoted(server: Server, client: httpx.Client, phase: dict[str, Any]) -> None:
    said = run("experiment", "show", "sql", "--metric", "correct", "--url", server.url)
    assert "y is better than x: 'correct' is 100.0 points higher" in said.stdout
    promote = ("experiment", "promote", "sql")
    done = run(*promote, "y", "--yes", "--url", server.url)
    assert done.returncode == 0, done.stderr
    assert "y is better than x" in done.stdout
    assert "is live, generation" in done.stderr
    assert {answered(client, at)[0] for at in range(12)} == {"y"}
    after = ok(client.get("/stacked/experiments/sql"))
    assert [(arm["key"], arm["share"]) for arm in after["phase"]["arms"]] == [("y", 1.0)]
    assert [each["phase"] for each in after["others"]] == [phase["phase"]]
    again = run(*promote, "y", "--yes", "--url", server.url)
    assert "Nothing to change" in again.stderr
    unknown = run(*promote, "z", "--yes", "--url", server.url)
    assert "its arms are y" in unknown.stderr
