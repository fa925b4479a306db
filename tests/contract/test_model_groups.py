"""Groups without a base over HTTP, from upload to answer: created, changed LIVE and by ZDT.

Their processes are real; an engine of adapters, where one comes or goes, is a double.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.rig import Rig, rig
from tests.models.making import processes, request, times
from tests.models.remote import PREFIX, changed, code_for, deploy, deploying, group, model
from tests.processes import wait_until_gone

ROW = {"content": request([[1.0, 2.0, 3.0]], [1, 3])}
SCORE = """
def load_model(folder):
    with open(folder + "/factor.txt") as file: return float(file.read())
def predict(data, model): return {{"prediction": model * data {more}}}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as running:
        yield running
        workers = processes()
        running.retire()
        wait_until_gone(workers)


def multiplied(server: Rig, directory: Path, factor: float) -> str:
    path = times(directory / f"times-{factor}", factor).path / "model.onnx"
    return model(server, **{"model.onnx": path.read_bytes()})


def with_code(server: Rig, id: str, more: str) -> str:
    return code_for(server, id, SCORE.format(more=more))


def predict(server: Rig, key: str, **body: Any) -> Any:
    answer = server.http.post("/predict", headers={"model-key": key}, **body)
    assert answer.is_success, answer.text
    return answer.json()


def value(server: Rig, key: str) -> Any:
    return predict(server, key, **ROW)["outputs"][0]["data"][0]


def test_group_of_models_is_deployed_and_replaced_live(server: Rig, tmp_path: Path) -> None:
    two, three, five = (multiplied(server, tmp_path, factor) for factor in (2, 3, 5))
    own = model(server, **{"score.py": SCORE.format(more="").encode(), "factor.txt": b"7"})
    id = deploy(server, group(server, "HETEROGENEOUS", a=two, b=three, own=own))
    assert (value(server, "a"), value(server, "b")) == (2.0, 3.0)
    assert predict(server, "own", json=2) == {"prediction": 14.0}
    status = server.http.get("/stacked/status").json()
    assert [(each["state"], each["rank"], each["resident"]) for each in status["models"]] == [
        ("SUCCESS", None, True)
    ] * 3
    after = group(server, "HETEROGENEOUS", a=five, b=three)
    assert changed(server, id, after, "LIVE") == "SUCCEEDED"
    assert (value(server, "a"), value(server, "b")) == (5.0, 3.0)
    gone = server.http.post("/predict", headers={"model-key": "own"}, json=2)
    assert gone.status_code == 404
    loaded = server.http.post(f"/models/{two}", json={"key": "more"})
    assert (loaded.status_code, loaded.json()["key"]) == (200, "more")
    assert value(server, "more") == 2.0
    base = server.model(customMetadataList=[{"key": "source", "value": str(server.roots / "base")}])
    assert server.http.post(f"/models/{base}").status_code == 400
    under = server.http.post(f"/{id}/predict", headers={"model-key": "a"}, **ROW)
    assert under.json()["outputs"][0]["data"][0] == 5.0


def test_new_code_for_the_same_models_is_a_live_update(server: Rig) -> None:
    member = model(server, **{"factor.txt": b"3"})
    first = with_code(server, group(server, "HOMOGENEOUS", m=member), "")
    id = deploy(server, first, WEB_CONCURRENCY="2")
    assert predict(server, "m", json=4) == {"prediction": 12.0}
    second = with_code(server, group(server, "HOMOGENEOUS", m=member), "+ 1")
    assert changed(server, id, second, "LIVE") == "SUCCEEDED"
    assert predict(server, "m", json=4) == {"prediction": 13.0}
    more = model(server, **{"factor.txt": b"5"})
    server.http.post(f"/models/{more}", json={"key": "n"}).raise_for_status()
    assert predict(server, "n", json=4) == {"prediction": 21.0}
    # Two models and the code of now; that of before is only stored.
    in_use = server.service.in_use
    stored = {each.digest for each in server.service.catalogue.models.contents()}
    assert (len(in_use), len(stored - in_use), in_use - stored) == (3, 1, set())
    assert server.http.post("/predict", headers={"model-key": "m"}, content=b"{").status_code == 400


def test_another_kind_of_group_takes_over_by_zdt_and_never_live(
    server: Rig, tmp_path: Path
) -> None:
    base = server.model(customMetadataList=[{"key": "source", "value": str(server.roots / "base")}])
    stacked = server.group(base, (server.adapter(1, base), "x"))
    models = group(server, "HETEROGENEOUS", a=multiplied(server, tmp_path, 2))
    id = deploy(server, stacked)
    assert "updateType ZDT" in changed(server, id, models, "LIVE")
    assert changed(server, id, models, "ZDT") == "SUCCEEDED"
    assert value(server, "a") == 2.0
    assert server.http.get("/v1/models").status_code == 404
    assert "updateType ZDT" in changed(server, id, stacked, "LIVE")
    assert changed(server, id, stacked, "ZDT") == "SUCCEEDED"
    assert server.http.get("/v1/models").status_code == 200
    assert server.http.get("/v2/models").status_code == 404


def test_update_that_cannot_be_loaded_leaves_the_old_group(server: Rig, tmp_path: Path) -> None:
    id = deploy(server, group(server, "HETEROGENEOUS", a=multiplied(server, tmp_path, 2)))
    broken = group(server, "HETEROGENEOUS", a=server.onnx())
    assert changed(server, id, broken, "LIVE") == "FAILED"
    assert value(server, "a") == 2.0
    assert server.state(id) == "ACTIVE"


def test_what_cannot_be_served_is_refused_before_anything_begins(server: Rig) -> None:
    data = group(server, "HOMOGENEOUS", m=model(server, **{"factor.txt": b"3"}))
    refused = server.http.post(f"{PREFIX}/modelDeployments", json=deploying(data))
    assert (refused.status_code, refused.json()["code"]) == (409, "Conflict")
    assert "artifact" in refused.json()["message"]
    several = deploying(with_code(server, data, ""), MULTI_MODEL_CONFIG="{}")
    refused = server.http.post(f"{PREFIX}/modelDeployments", json=several)
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidParameter")
    assert server.ask("GET", "/modelDeployments") == []
