"""What a Triton server may do that a real one does not do when asked: faults, at every call."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from stacked.catalogue import Catalogue
from stacked.config import ControlConfig, ModelsConfig
from stacked.core import ModelFiles, Runtime
from stacked.deployment.activation import Starter
from stacked.deployment.ledger import Ledger
from stacked.errors import (
    BodyInvalid,
    CanaryFailed,
    EngineDead,
    EngineError,
    EngineLoadFailed,
    EngineStartFailed,
    ModelFailed,
    ModelTooSlow,
    ParameterInvalid,
    StoreDamaged,
)
from stacked.loader import Loader
from stacked.models import triton as module
from stacked.models.triton import TritonEngine, owner_in
from stacked.steps import Silent
from tests.api.doors import served
from tests.models.making import files, infer
from tests.serving import free_port
from tests.test_models_serving import first, prepared
from tests.test_models_serving import served as serving
from tests.waiting import until_async

JSON, OCTETS = "application/json", "application/octet-stream"
LENGTH = "inference-header-content-length"
X = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
REQUEST = b'{"inputs":[]}'


class Double:
    """Answers as Triton does; `faults` are what it does instead, by the last word of the path."""

    def __init__(self) -> None:
        self.loads: list[dict[str, Any]] = []
        self.loaded: dict[str, Any] = {}
        self.faults: dict[str, Any] = {}
        """A status, a (status, text), `hang`, or `break`; by verb, or by verb and model."""
        self.extensions = ["model_repository"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = scope["path"].removeprefix("/v2").strip("/").split("/")
        name = next((part for part in parts if part.startswith("stacked-")), "")
        body = await Request(scope, receive).body()
        fault = self.faults.get(f"{parts[-1]} {name}") or self.faults.get(parts[-1])
        if fault == "hang":
            await receive()  # the client leaves
            if parts[-1] == "load":
                self.loaded[name] = {}  # it has been loaded after all
            return
        if fault == "break":
            start = {"type": "http.response.start", "status": 200, "headers": []}
            await send({**start, "headers": [(b"content-length", b"1000")]})
            await send({"type": "http.response.body", "body": b"{", "more_body": True})
            raise ConnectionError("the double ends here")
        status, text = fault if isinstance(fault, tuple) else (fault, "a fault")
        if fault:
            answer: Response = JSONResponse({"error": text}, status)
        else:
            answer = self.answer(parts, name, body)
            length = Request(scope).headers.get(LENGTH)
            if length:  # its request is its answer
                answer = Response(body, headers={LENGTH: length}, media_type=OCTETS)
        await answer(scope, receive, send)

    def answer(self, parts: list[str], name: str, body: bytes) -> Response:
        match parts:
            case [""]:
                return JSONResponse({"name": "triton", "extensions": self.extensions})
            case [*_, "stats"]:
                return JSONResponse({"model_stats": [{"name": each} for each in self.loaded]})
            case [*_, "load"]:
                self.loads.append(json.loads(body)["parameters"])
                self.loaded[name] = self.loads[-1]
            case [*_, "unload"]:
                self.loaded.pop(name, None)
            case [*_, "ready"]:
                return Response(status_code=200 if name in self.loaded else 400)
            case [*_, "infer"] if name not in self.loaded:
                return JSONResponse({"error": "unknown model"}, 404)
            case [*_, "infer"]:
                return JSONResponse({"outputs": []})
            case _:
                return JSONResponse({"name": name, "inputs": [X], "outputs": []})
        return Response()


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[Double, str]]:
    double = Double()
    with served(double) as url:
        yield double, url


@pytest.fixture
def double(address: tuple[Double, str]) -> Double:
    Double.__init__(address[0])
    return address[0]


@asynccontextmanager
async def engine_at(url: str, deadline_seconds: float = 10.0) -> AsyncIterator[TritonEngine]:
    engine = TritonEngine(print, url, "me", deadline_seconds)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


@pytest.fixture
async def engine(double: Double, address: tuple[Double, str]) -> AsyncIterator[TritonEngine]:
    async with engine_at(address[1]) as engine:
        yield engine


def onnx(path: Path, content: bytes = b"model") -> ModelFiles:
    path.mkdir()
    (path / "any.onnx").write_bytes(content)
    (path / "weights.bin").write_bytes(bytes(range(256)) * 10_000)
    return files(path)


def quiet(_: int) -> None: ...


async def test_files_are_pushed_whole_and_under_another_name_each_time(
    double: Double, engine: TritonEngine, tmp_path: Path
) -> None:
    model = onnx(tmp_path / "m")
    first, second = [await engine.stage(model) for _ in range(2)]
    assert len(double.loaded) == 2
    assert all(model.digest[7:19] in name for name in double.loaded)
    for pushed in double.loads:
        assert json.loads(pushed.pop("config")) == {
            "platform": "onnxruntime_onnx",
            "default_model_filename": "any.onnx",
        }
        assert {name: base64.b64decode(text) for name, text in pushed.items()} == {
            "file:1/any.onnx": b"model",
            "file:1/weights.bin": bytes(range(256)) * 10_000,
        }
    assert not await engine.verify({model.digest: first}, quiet)
    await engine.remove(first, second)
    assert not double.loaded


async def test_a_pinned_model_has_an_instance_on_each_of_its_cards(
    double: Double, engine: TritonEngine, tmp_path: Path
) -> None:
    await engine.stage(onnx(tmp_path / "m").on_cards((0, 2)))
    config = json.loads(double.loads[0]["config"])
    assert config["instance_group"] == [{"kind": "KIND_GPU", "gpus": [0, 2]}]


async def test_second_backend_is_tried_and_both_refusals_are_named(
    double: Double, engine: TritonEngine, tmp_path: Path
) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    model = files(tmp_path, Runtime.SAVED_MODEL)
    double.faults["load"] = 400, "no such backend"
    with pytest.raises(EngineLoadFailed, match=r"no such backend.*; .*no such backend"):
        await engine.stage(model)
    double.faults.clear()
    await engine.stage(model)
    assert [*double.loads[0]] == ["config", "file:1/model.savedmodel/saved_model.pb"]


async def test_load_that_hangs_fails_alone_and_is_unloaded_by_the_next_change(
    double: Double, engine: TritonEngine, tmp_path: Path
) -> None:
    slow, good = onnx(tmp_path / "slow", b"slow"), onnx(tmp_path / "good", b"good")
    engine._deadline = 0.3
    double.faults["load"] = "hang"
    loading = asyncio.create_task(engine.stage(slow))
    failed: dict[Any, Any] = {}
    assert [*await Loader(engine).stage([slow], failed, quiet)] == [slow.digest]
    with pytest.raises(EngineLoadFailed, match=r"no answer from Triton in 0\.3 s"):
        await loading
    double.faults.clear()
    await until_async(lambda: len(double.loaded) == 2)
    handle = await engine.stage(good)
    assert len(double.loaded) == 3
    async with engine.undisturbed():
        assert len(double.loaded) == 1
    assert engine.ready(handle)


async def test_unload_that_hangs_holds_up_no_other(
    double: Double, engine: TritonEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UNLOAD_SECONDS", 0.3)
    models = [await engine.stage(onnx(tmp_path / each, each.encode())) for each in "abc"]
    stuck = engine._held[models[1].number].name
    double.faults[f"unload {stuck}"] = "hang"
    loader = Loader(engine)
    left = await loader.let_go(models)
    assert {digest: type(error) for digest, error in left.items()} == {
        models[1].digest: EngineError
    }
    assert [*double.loaded] == [stuck]
    assert loader.stuck == [models[1]]
    double.faults.clear()
    assert not await loader.let_go(loader.stuck)
    assert not double.loaded


async def test_faults_of_requests_are_told_apart(
    double: Double, engine: TritonEngine, tmp_path: Path
) -> None:
    handle = await engine.stage(onnx(tmp_path / "m"))
    cases: list[tuple[Any, bytes, type[Exception]]] = [
        ((400, "x" * 10_000), REQUEST, ParameterInvalid),
        (413, REQUEST, ParameterInvalid),
        (500, REQUEST, ModelFailed),
        (503, REQUEST, ModelFailed),
        (500, b"{", BodyInvalid),
        (500, b"[]", BodyInvalid),
        ("break", REQUEST, EngineDead),
    ]
    for fault, body, expected in cases:
        double.faults["infer"] = fault
        with pytest.raises(expected) as refused:
            await infer(engine, handle, body, JSON)
        assert type(refused.value) is expected
        assert len(str(refused.value)) < 600
    double.faults["infer"] = "hang"
    engine._deadline = 0.3
    with pytest.raises(ModelTooSlow):
        await infer(engine, handle, REQUEST, JSON)
    double.faults.clear()
    assert await infer(engine, handle, REQUEST, JSON) == b'{"outputs":[]}'


async def test_what_triton_calls_ready_has_to_answer(
    double: Double, engine: TritonEngine, tmp_path: Path
) -> None:
    model = onnx(tmp_path / "m")
    handle = await engine.stage(model)
    for fault in ("infer", "ready"):
        double.faults = {fault: 500}
        failed = await engine.verify({model.digest: handle}, quiet)
        assert [type(each) for each in failed.values()] == [CanaryFailed]
    (model.path / "example.json").write_bytes(b"{")
    double.faults = {"infer": 500}
    (error,) = (await engine.verify({model.digest: handle}, quiet)).values()
    assert isinstance(error, CanaryFailed)
    double.faults = {}
    assert not await engine.verify({model.digest: handle}, quiet)


async def test_file_that_is_gone_or_cannot_be_read_is_a_refusal(
    double: Double, engine: TritonEngine, tmp_path: Path
) -> None:
    model = onnx(tmp_path / "m")
    (model.path / "weights.bin").unlink()
    (model.path / "weights.bin").symlink_to("/proc/self/mem")  # reading its begin is an error
    with pytest.raises(StoreDamaged, match="cannot be read"):
        await engine.stage(model)
    (model.path / "any.onnx").unlink()
    with pytest.raises(StoreDamaged, match="cannot be read"):
        await engine.stage(model)
    assert not double.loaded


@pytest.mark.parametrize(
    ("faults", "extensions"),
    [
        ({}, ["statistics"]),
        ({"unload": 503}, ["model_repository"]),
        ({"unload": "break"}, ["model_repository"]),
        ({"unload": "hang"}, ["model_repository"]),
        ({"v2": 500}, ["model_repository"]),
        ({"stats": "break"}, ["model_repository"]),
    ],
)
async def test_start_is_refused_where_models_cannot_be_loaded(
    double: Double,
    address: tuple[Double, str],
    faults: dict[str, Any],
    extensions: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_UNLOAD_SECONDS", 0.3)
    double.faults, double.extensions = faults, extensions
    if "v2" in faults:
        double.faults = {"": 500}
    with pytest.raises(EngineStartFailed):
        async with engine_at(address[1]):
            pass


async def test_start_is_refused_where_nothing_listens() -> None:
    for url in (f"http://127.0.0.1:{free_port()}", "http://[broken", "ftp://127.0.0.1"):
        with pytest.raises(EngineStartFailed, match="does not answer"):
            async with engine_at(url):
                pass


async def test_configured_triton_is_what_a_deployment_starts_in(
    double: Double, address: tuple[Double, str], tmp_path: Path
) -> None:
    config = ControlConfig(models=ModelsConfig(triton=address[1]))
    catalogue = cast(Catalogue, SimpleNamespace(models=SimpleNamespace(root=tmp_path)))
    starter = Starter(cast(Ledger, None), catalogue, config)
    serving = await starter.start(prepared({"key": onnx(tmp_path / "m")}), first, Silent())
    assert [owner_in(tmp_path) in name for name in double.loaded] == [True]
    await serving.close()
    assert not double.loaded
    with pytest.raises(ValidationError):
        ModelsConfig(triton="triton:8000")


async def test_group_is_served_from_triton_and_binary_tensors_pass_both_ways(
    double: Double, address: tuple[Double, str], tmp_path: Path
) -> None:
    owner = owner_in(tmp_path)
    assert owner == owner_in(tmp_path)
    async with serving(tmp_path, address[1], key=onnx(tmp_path / "m")) as here:
        assert [owner in name for name in double.loaded] == [True]
        path, headers = "/v2/models/key/infer", {"content-type": OCTETS, LENGTH: "2"}
        answer = await here.http.post(path, headers=headers, content=b"{}\x00\xff")
        assert (answer.status_code, answer.content) == (200, b"{}\x00\xff")
        assert (answer.headers["content-type"], answer.headers[LENGTH]) == (OCTETS, "2")
        assert (await here.http.get("/v2/models/key")).json()["inputs"] == [X]
        assert (await here.http.get("/v2/models/key/ready")).status_code == 200
        refused = await here.http.post(path, content=b"", headers={"content-type": "multipart/x"})
        assert refused.status_code == 415
        double.faults["infer"] = 400, "no such input"
        wrong = await here.http.post(path, json={"inputs": []})
        assert (wrong.status_code, wrong.json()["code"]) == (400, "ParameterInvalid")
    assert not double.loaded
