"""Models without vLLM behind the gateway, in real worker processes: who is meant, what is refused.

What the models compute is the engine's to show.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from stacked.api.gateway import Gateway
from stacked.api.routes import create_routes
from stacked.callers import Caller
from stacked.config import ControlConfig, Design, ModelsConfig, ServerConfig
from stacked.core import Member, ModelFiles, ModelGroup, model_id_of
from stacked.deployment.activation import Active
from stacked.errors import CanaryFailed, EngineLoadFailed, GroupInvalid
from stacked.service import Service, State
from stacked.serving import Prepared
from stacked.serving.models import ModelsServing
from stacked.serving.settings import settings_of
from stacked.steps import Silent
from tests.api.doubles import ByName
from tests.models.making import folder, processes, request, score, times
from tests.processes import wait_until_gone
from tests.test_live import Notes
from tests.waiting import until_async

ROW = {"json": json.loads(request([[1.0, 2.0, 3.0]], [1, 3]))}
ENDS = """
import os, time
def load_model(folder): return folder
def predict(data, model):
    if data == "end": os._exit(1)
    if data == "wait": time.sleep(60)
    return {"prediction": data}
"""


async def first() -> int:
    return 1


def prepared(members: Mapping[str, ModelFiles]) -> Prepared:
    group = ModelGroup("g", None, members_of(members), kind="HETEROGENEOUS")
    return Prepared(group, settings_of({}, group.kind))


def members_of(contents: Mapping[str, ModelFiles]) -> tuple[Member, ...]:
    return tuple(Member(model_id_of(each.digest), each, key) for key, each in contents.items())


async def start(given: Prepared, directory: Path, triton: str = "") -> ModelsServing:
    models = ModelsConfig(deadline_seconds=20, triton=triton)
    config = ControlConfig(models=models, server=ServerConfig(drain_seconds=5))
    return await ModelsServing.start(given, first, config, directory, Silent())


async def test_a_model_on_a_card_that_is_not_there_is_refused_before_any_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    given = prepared({"m": times(tmp_path / "m", 2)})
    pinned = replace(given.group, metadata={"stacked.gpus": '{"m": [2]}'})
    with pytest.raises(GroupInvalid, match="'m' is pinned to card 2, and this server has 2"):
        await start(replace(given, group=pinned), tmp_path)
    assert not processes()


@dataclass
class Served:
    """A service that serves models, and a client of it."""

    service: Service
    serving: ModelsServing
    http: httpx.AsyncClient

    async def predict(self, value: Any, key: str | None = None, **more: Any) -> httpx.Response:
        headers = {"model-key": key} if key else {}
        return await self.http.post("/predict", headers=headers, **(more or {"json": value}))


@asynccontextmanager
async def served(directory: Path, triton: str = "", **members: ModelFiles) -> AsyncIterator[Served]:
    service = Service(ControlConfig(server=ServerConfig()), directory / "data")
    serving = await start(prepared(members), directory, triton)
    service._slot.serve(Active("", "g", serving))
    service.state = State.SERVING
    try:
        async with client_of(service) as http:
            yield Served(service, serving, http)
    finally:
        workers = processes()
        await service.close()
        wait_until_gone(workers)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def models(directory: Path) -> dict[str, ModelFiles]:
    return {"two/x": times(directory / "two", 2), "three": times(directory / "three", 3)}


def client_of(service: Service, gate: Any = None) -> httpx.AsyncClient:
    app = Gateway(service, create_routes(service), gate)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://here")


@pytest.fixture
async def two(directory: Path, models: dict[str, ModelFiles]) -> AsyncIterator[Served]:
    async with served(directory, **models) as here:
        yield here


def values(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][0]["data"]


async def test_key_or_id_in_a_header_or_the_path_names_the_model(two: Served) -> None:
    member = two.serving.live.routing.members[0]
    post, doubled = two.http.post, [2.0, 4.0, 6.0]
    by_key = await post("/predict", headers={"model-key": "two/x"}, **ROW)
    assert values(by_key) == doubled
    assert by_key.headers["model-key"] == "two/x"
    assert by_key.headers["model-digest"] == member.content.digest
    assert values(await post("/predict", headers={"model-ocid": member.model_id}, **ROW)) == doubled
    assert values(await post("/models/two%2Fx/predict", **ROW)) == doubled
    assert values(await post("/v2/models/two%2Fx/infer", **ROW)) == doubled
    assert values(await post("/v2/models/three/infer", **ROW)) == [3.0, 6.0, 9.0]


async def test_no_name_two_names_and_unknown_names_are_refused(two: Served) -> None:
    nobody = await two.predict(None, **ROW)
    assert (nobody.status_code, nobody.json()["code"]) == (400, "KeyMissing")
    # A feature may be called so: the body is never looked into.
    named = await two.predict({"model": "three", **ROW["json"]})
    assert named.json()["code"] == "KeyMissing"
    both = await two.http.post("/models/three/predict", headers={"model-key": "two/x"}, **ROW)
    assert (both.status_code, both.json()["code"]) == (400, "KeyConflict")
    unknown = await two.predict(None, "nope", **ROW)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "KeyUnknown")
    assert "/v2/models" in unknown.json()["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/chat/completions", 404, "NotAuthorizedOrNotFound"),
        ("POST", "/v1/completions", 404, "NotAuthorizedOrNotFound"),
        ("POST", "/v2/embed", 404, "NotAuthorizedOrNotFound"),
        ("POST", "/tokenize", 404, "NotAuthorizedOrNotFound"),
        ("GET", "/v1/models", 404, "NotAuthorizedOrNotFound"),
        ("GET", "/version", 404, "NotAuthorizedOrNotFound"),
        ("POST", "/predictWithResponseStream", 409, "ExternalServerIncorrectState"),
        ("POST", "/models/three/predictWithResponseStream", 409, "ExternalServerIncorrectState"),
        ("POST", "/models/other", 404, "SourceNotFound"),
    ],
)
async def test_what_only_vllm_has_is_refused_by_name(
    two: Served, method: str, path: str, status: int, code: str
) -> None:
    answer = await two.http.request(method, path, json={} if method == "POST" else None)
    error = answer.json().get("error", answer.json())
    assert (answer.status_code, error["code"]) == (status, code)


async def test_binary_tensors_and_forms_are_not_taken(two: Served) -> None:
    binary = {"model-key": "three", "Inference-Header-Content-Length": "10"}
    assert (await two.http.post("/predict", headers=binary, content=b"x")).status_code == 415
    form = await two.predict(None, "three", files={"a": b"x"})
    assert (form.status_code, form.json()["code"]) == (415, "EncodingUnsupported")


async def test_errors_of_the_inference_protocol_have_what_its_clients_show(two: Served) -> None:
    wrong = await two.http.post("/v2/models/three/infer", content=request([1.0], [1]))
    assert wrong.status_code == 400
    assert "shape" in wrong.json()["error"]
    assert wrong.json()["code"] == "ParameterInvalid"
    absent = await two.http.get("/v2/models/nope/ready")
    assert (absent.status_code, absent.json()["error"]) == (404, absent.json()["message"])


async def test_metadata_readiness_and_health_by_the_protocol_and_ours(two: Served) -> None:
    get = two.http.get
    assert (await get("/v2")).json()["name"] == "stacked"
    assert (await get("/v2/health/live")).json() == {"live": True}
    assert (await get("/v2/health/ready")).json() == {"ready": True}
    assert (await get("/v2/models")).json() == {"models": ["two/x", "three"]}
    assert (await get("/v2/models/three/ready")).json() == {"ready": True, "name": "three"}
    described = (await get("/v2/models/two%2Fx")).json()
    assert (described["name"], described["inputs"][0]["shape"]) == ("two/x", [-1, 3])
    assert (await get("/health")).json()["models"] == 2
    assert (await get("/models/three/health")).json()["status"] == "healthy"
    shown = (await get("/metrics")).text
    assert 'stacked_model_bytes{digest="' in shown
    assert 'key="three",place="host"} 1.0' in shown
    assert "/v2/models/{model}/infer" in (await get("/openapi.json")).json()["paths"]


async def test_group_is_replaced_live_under_requests(
    directory: Path, two: Served, models: dict[str, ModelFiles]
) -> None:
    other = times(directory / "seven", 7)
    answers: list[list[float]] = []

    async def ask() -> None:
        while [7.0, 14.0, 21.0] not in answers:
            answers.append(values(await two.predict(None, "three", **ROW)))

    asking = asyncio.create_task(ask())
    await until_async(lambda: answers)
    members = members_of({"three": other, "new": models["three"]})
    report = await two.serving.live.update(None, members, Notes())
    await asking
    assert (len(report.loaded), len(report.dropped)) == (1, 1)
    assert [one for at, one in enumerate(answers) if one not in answers[:at]] == [
        [3.0, 6.0, 9.0],
        [7.0, 14.0, 21.0],
    ]
    assert values(await two.predict(None, "new", **ROW)) == [3.0, 6.0, 9.0]


async def test_an_experiments_key_answers_by_the_units_arm_everywhere(two: Served) -> None:
    live, text = two.serving.live, [{"key": "größe", "arms": [{"key": "two/x"}, {"key": "three"}]}]
    design = Design.of({"stacked.experiments": json.dumps(text)})
    await live.update(None, live.routing.members, Notes(), design)
    arms = live.routing.arms["größe"]
    for unit in map(str, range(8)):
        named = {"model-key": "gr%C3%B6%C3%9Fe", "experiment-unit": unit}
        arm = arms.split.arm(unit)
        for path in ("/predict", "/models/größe/predict", "/v2/models/größe/infer"):
            answer = await two.http.post(path, headers=named, **ROW)
            assert values(answer)[0] == {"two/x": 2.0, "three": 3.0}[arm]
            assert answer.headers["model-arm"] == arm
            assert answer.headers["model-experiment"] == "gr%C3%B6%C3%9Fe"
            assert answer.headers["model-key"] == "gr%C3%B6%C3%9Fe"
            assert answer.headers["model-digest"] == live.routing.resolve(arm).digest
    alone = await two.predict(None, "three", **ROW)
    assert "model-arm" not in alone.headers
    listed = (await two.http.get("/v2/models")).json()["models"]
    assert listed == ["two/x", "three", "größe"]
    assert (await two.http.get("/models/größe/health")).json()["model"] == "größe"
    both = {"model-key": "gr%C3%B6%C3%9Fe", "model-ocid": live.routing.members[0].model_id}
    conflict = await two.http.post("/predict", headers=both, **ROW)
    assert conflict.json()["code"] == "KeyConflict"
    taken = await two.http.delete("/models/größe")
    assert (taken.status_code, taken.json()["code"]) == (409, "KeyInUse")
    await two.http.delete("/models/three")
    for unit in map(str, range(8)):
        headers = {"model-key": "gr%C3%B6%C3%9Fe", "experiment-unit": unit}
        answer = await two.http.post("/predict", headers=headers, **ROW)
        assert answer.headers["model-arm"] == "two/x"
    held = ByName({"me": Caller("me", keys=frozenset({"größe"}))})
    async with client_of(two.service, held) as http:
        http.headers["who"] = "me"
        assert (await http.get("/v2/models")).json() == {"models": ["größe"]}
        assert values(await http.post("/v2/models/größe/infer", **ROW))[0] == 2.0
        hidden = await http.post("/v2/models/two%2Fx/infer", **ROW)
        assert (hidden.status_code, "GET /v2/models" in hidden.text) == (404, True)


async def test_model_is_removed_and_served_again_by_its_key(two: Served) -> None:
    assert (await two.http.delete("/models/three")).json() == {"status": "removed"}
    assert (await two.http.get("/models/three/health")).status_code == 404
    again = await two.http.post("/models/three")
    assert (again.status_code, again.json()["key"]) == (200, "three")
    assert values(await two.predict(None, "three", **ROW)) == [3.0, 6.0, 9.0]
    other = await two.http.post("/models/x", json={"source": str(two.serving)})
    assert (other.status_code, other.json()["code"]) == (403, "NotAllowed")


async def test_model_that_ends_its_process_is_withheld_and_the_rest_served(directory: Path) -> None:
    code = score(directory / "code", ENDS)
    bad = folder(directory / "bad", code, data="1")
    async with served(directory, bad=bad, good=times(directory / "good", 5)) as here:
        assert (await here.predict({"a": [1]}, "bad")).json() == {"prediction": {"a": [1]}}
        held = next(iter(here.serving.live.routing.handles.values()))
        for _ in range(3):
            await until_async(lambda: here.serving.engine.ready(held))
            ended = await here.predict("end", "bad")
            assert (ended.status_code, ended.json()["code"]) == (503, "EngineDead")
        await until_async(lambda: here.serving.live.quarantined)
        refused = await here.predict(1, "bad")
        assert (refused.status_code, refused.json()["code"]) == (503, "ModelQuarantined")
        assert values(await here.predict(None, "good", **ROW)) == [5.0, 10.0, 15.0]
        assert not here.serving.dead
        shown = (await here.http.get("/metrics")).text
        (restarts,) = re.findall(r'process_restarts_total\{runtime="data"\} (\S+)', shown)
        assert float(restarts) >= 3
        # A person may try it again.
        assert (await here.http.post("/models/bad")).status_code == 200
        assert (await here.predict(1, "bad")).json() == {"prediction": 1}


async def test_request_that_outlasts_the_drain_time_is_ended(directory: Path) -> None:
    slow = folder(directory / "slow", score(directory / "slow_code", ENDS), data="2")
    async with served(directory, slow=slow) as here:
        here.serving.live._drain_seconds = 0.1
        waiting = asyncio.create_task(here.predict("wait", "slow"))
        await until_async(here.serving.live.leases.things)
        assert await here.serving.live.drain() == 1
        assert (await waiting).json()["code"] == "DrainExpired"
        assert not here.serving.live.leases.things()


async def test_start_is_all_or_nothing_and_names_the_member(directory: Path) -> None:
    code = score(directory / "broken_code", "def load_model(folder): raise ValueError('no')")
    broken = folder(directory / "broken", code, data="3")
    with pytest.raises(EngineLoadFailed, match=r"^worse: .*no"):
        await start(prepared({"fine": times(directory / "fine", 2), "worse": broken}), directory)


async def test_what_loads_and_does_not_answer_is_not_served(directory: Path) -> None:
    wrong = score(
        directory / "wrong_code",
        "def load_model(folder): return 1\ndef predict(data, model): raise ValueError('never')",
        **{"example.json": "1"},
    )
    member = folder(directory / "wrong", wrong, **{"example.json": "1"})
    with pytest.raises(CanaryFailed, match=r"^w: .*never"):
        await start(prepared({"w": member}), directory)


async def test_what_is_withheld_is_not_loaded(directory: Path, models: Any) -> None:
    given = prepared(models)
    bad = given.group.members[1]
    serving = await start(given.without({bad.model_id: "it ended its process"}), directory)
    try:
        assert [route.label for route in serving.live.routing] == ["two/x"]
        assert dict(serving.live.quarantined) == {bad: "it ended its process"}
        there = await serving.resident()
        assert len(there.host) == 1
    finally:
        await serving.close()
        await serving.close()


async def test_who_is_held_to_some_keys_does_not_learn_of_others(two: Served) -> None:
    held = ByName({"me": Caller("me", keys=frozenset({"three"}))})
    async with client_of(two.service, held) as http:
        http.headers["who"] = "me"
        assert (await http.get("/v2/models")).json() == {"models": ["three"]}
        assert values(await http.post("/v2/models/three/infer", **ROW)) == [3.0, 6.0, 9.0]
        for method, path in (("GET", ""), ("GET", "/ready"), ("POST", "/infer")):
            answers = [
                (await http.request(method, f"/v2/models/{key}{path}")).text.replace(key, "…")
                for key in ("two%2Fx", "nope")
            ]
            assert answers[0].replace("two/x", "…") == answers[1]
            assert "KeyUnknown" in answers[1]
