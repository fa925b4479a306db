"""A group in a real Triton server; see docs/model-groups.md for how these are run."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from stacked.core import Digest, Member, ModelFiles, ModelId, Runtime
from stacked.errors import (
    BodyInvalid,
    CanaryFailed,
    EngineDead,
    EngineLoadFailed,
    EngineStartFailed,
    ModelAnswerInvalid,
    ModelFailed,
    ModelTooSlow,
    NotReady,
    ParameterInvalid,
    StackedError,
    UpdateFailed,
)
from stacked.groups.routing import Routing
from stacked.live import Live
from stacked.models.engine import ModelHandle
from stacked.models.triton import TritonEngine
from stacked.models.triton_files import BACKENDS, zeros
from stacked.steps import Phase
from tests.models.making import files, folder, infer, request, score
from tests.models.tritons import Triton, running
from tests.waiting import until_async

pytestmark = pytest.mark.long

JSON = "application/json"
SCORE = """
import os, sys, time

def load_model(model_folder):
    with open(os.path.join(model_folder, "factor")) as file:
        factor = float(file.read())
    if factor < 0: raise ValueError("a factor below 0")
    if factor > 1000: time.sleep(factor / 1000)
    return factor

def predict(data, model):
    if isinstance(data, bytes): return len(data)
    if data == "nan": return float("nan")
    if data == "raise": raise ValueError("no such row")
    if data == "exit": sys.exit(3)
    if data == "gone": os._exit(4)
    if data == "loop": time.sleep(3)
    return [each * model for each in data]
"""


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    with running(tmp_path_factory.mktemp("triton")) as triton:
        yield triton


@asynccontextmanager
async def engine_of(
    triton: Triton, owner: str = "one"
) -> AsyncIterator[tuple[TritonEngine, list[str]]]:
    """An engine, and why it has given up models."""
    given_up: list[str] = []
    engine = TritonEngine(lambda _, why: given_up.append(why), triton.url, owner, 60)
    await engine.start()
    try:
        yield engine, given_up
    finally:
        await engine.close()


def quiet(_: int) -> None: ...


def names(engine: TritonEngine) -> list[str]:
    return sorted(held.name for held in engine._held.values())


async def test_members_of_a_score_py_answer_and_are_gone_when_removed(
    triton: Triton, tmp_path: Path
) -> None:
    code = score(tmp_path / "code", SCORE)
    async with engine_of(triton) as (engine, _):
        two, three = [
            await engine.stage(folder(tmp_path / str(each), code, factor=str(each)))
            for each in (2, 3)
        ]
        assert not await engine.verify({two.digest: two, three.digest: three}, quiet)
        assert json.loads(await infer(engine, two, b"[1, 2]", JSON)) == [2, 4]
        assert json.loads(await infer(engine, three, b"[1, 2]", JSON)) == [3, 6]
        assert await infer(engine, two, b"\x00\xff\x01", "application/octet-stream") == b"3"
        for body, error in (
            (b"{", BodyInvalid),
            (b'"nan"', ModelAnswerInvalid),
            (b'"raise"', ModelFailed),
            (b'"exit"', ModelFailed),
        ):
            with pytest.raises(error):
                await infer(engine, two, body, JSON)
        assert len(triton.loaded) == 2
        await engine.remove(two)
        await engine.remove(two)
        assert len(triton.loaded) == 1
    assert triton.loaded == []


async def test_models_that_do_not_load_or_take_too_long_leave_nothing(
    triton: Triton, tmp_path: Path
) -> None:
    code = score(tmp_path / "code", SCORE)
    async with engine_of(triton) as (engine, _):
        with pytest.raises(EngineLoadFailed, match="a factor below 0"):
            await engine.stage(folder(tmp_path / "bad", code, factor="-1"))
        good = await engine.stage(folder(tmp_path / "good", code, factor="2"))
        engine._deadline = 2
        with pytest.raises(EngineLoadFailed, match="no answer from Triton in 2 s"):
            await engine.stage(folder(tmp_path / "slow", code, factor="10000"))
        engine._deadline = 60
        assert json.loads(await infer(engine, good, b"[1]", JSON)) == [2]
        assert triton.loaded == names(engine)
        await until_async(lambda: len(triton.loaded) == 2, 120)
        async with engine.undisturbed():  # as the next change of the group begins
            assert triton.loaded == names(engine)


async def test_backend_that_the_server_has_not_is_a_refusal(triton: Triton, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "any.onnx").write_bytes(b"no matter")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"no matter")
    async with engine_of(triton) as (engine, _):
        onnx = files(tmp_path / "onnx")
        with pytest.raises(EngineLoadFailed, match="'onnxruntime'"):
            await engine.stage(onnx)
        with pytest.raises(EngineLoadFailed, match=r"'tensorflow'.*'openvino'"):
            await engine.stage(files(tmp_path / "saved", Runtime.SAVED_MODEL))


TENSORS = """
import numpy as np
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(triton.get_input_tensor_by_name(each, "x")) for each in requests]

    def answer(self, x):
        y = x.as_numpy() * np.float32(FACTOR)
        half = triton.Tensor("half", y.astype(np.float16))
        return triton.InferenceResponse([triton.Tensor("y", y), half])
"""


def tensors(path: Path, factor: str) -> ModelFiles:
    """A file that Triton's python backend loads by itself, as others load an ONNX file."""
    path.mkdir()
    (path / "model.py").write_text(TENSORS.replace("FACTOR", factor), encoding="utf-8")
    return replace(files(path, Runtime.TORCH), main=path / "model.py")


async def test_requests_of_tensors_are_passed_on_both_ways(
    triton: Triton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = {"x": "TYPE_FP32", "y": "TYPE_FP32", "half": "TYPE_FP16"}
    x, y, half = [{"name": name, "data_type": of, "dims": [-1, 2]} for name, of in types.items()]
    backend = {"backend": "python", "input": [x], "output": [y, half]}
    monkeypatch.setitem(BACKENDS, Runtime.TORCH, [backend])
    async with engine_of(triton) as (engine, _):
        two = await engine.stage(tensors(tmp_path / "two", "2"))
        nan = await engine.stage(tensors(tmp_path / "nan", "np.nan"))
        failed = await engine.verify({two.digest: two, nan.digest: nan}, quiet)
        assert {digest: type(error) for digest, error in failed.items()} == {
            nan.digest: CanaryFailed
        }
        assert two.described("key")["inputs"] == [
            {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
        ]
        only_y = [{"name": "y"}]
        body = request([1, 2], [1, 2], outputs=only_y)
        answer = json.loads(await infer(engine, two, body, JSON))
        assert answer["outputs"] == [
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [2, 4]}
        ]
        with pytest.raises(ModelAnswerInvalid):
            await infer(engine, nan, body, JSON)
        for wrong, error in (
            (b"{", BodyInvalid),
            (b"{}", BodyInvalid),
            (request([1, 2, 3], [1, 3], outputs=only_y), ParameterInvalid),
            (request([1, 2], [1, 2], "INT64", outputs=only_y), ParameterInvalid),
        ):
            with pytest.raises(error, match="Triton: "):
                await infer(engine, two, wrong, JSON)
        binary, headers = zeros(two.described(""))
        content, given = await engine.infer(two, binary, headers)
        length = int(given["inference-header-content-length"])
        assert len(content) - length == 4  # two numbers of 16 bits
        assert [each["name"] for each in json.loads(content[:length])["outputs"]] == ["y", "half"]


async def test_model_whose_process_has_ended_is_given_up_and_the_others_answer(
    triton: Triton, tmp_path: Path
) -> None:
    code = score(tmp_path / "code", SCORE)
    async with engine_of(triton) as (engine, given_up):
        gone, good = [
            await engine.stage(folder(tmp_path / each, code, factor=each)) for each in "23"
        ]
        with pytest.raises(ModelFailed):
            await infer(engine, gone, b'"gone"', JSON)
        assert given_up
        assert json.loads(await infer(engine, good, b"[1]", JSON)) == [3]


async def test_request_ends_at_its_deadline(triton: Triton, tmp_path: Path) -> None:
    code = score(tmp_path / "code", SCORE)
    async with engine_of(triton) as (engine, _):
        slow = await engine.stage(folder(tmp_path / "m", code, factor="2"))
        engine._deadline = 0.5
        with pytest.raises(ModelTooSlow):
            await infer(engine, slow, b'"loop"', JSON)
        engine._deadline = 60


LEAVES = """
import asyncio, os, sys
from pathlib import Path
from stacked.models.triton import TritonEngine
from tests.models.making import folder, score

async def main(url, path):
    engine = TritonEngine(print, url, "one", 60)
    await engine.start()
    code = score(path / "code", "def load_model(f): pass\\ndef predict(data, model): return data")
    await engine.stage(folder(path / "m", code, a="b"))
    os._exit(0)

asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
"""


async def test_what_an_earlier_process_left_is_unloaded_and_nothing_else(
    triton: Triton, tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", LEAVES, triton.url, str(tmp_path / "left")]
    (tmp_path / "left").mkdir()
    await asyncio.to_thread(subprocess.run, command, check=True, cwd=root)
    (left,) = triton.loaded
    code = score(tmp_path / "code", SCORE)
    async with engine_of(triton, owner="two") as (other, _):
        await other.stage(folder(tmp_path / "2", code, factor="2"))
        assert triton.loaded == sorted([left, *names(other)])
        async with engine_of(triton) as (engine, _):
            assert triton.loaded == names(other)
            old = await engine.stage(folder(tmp_path / "3", code, factor="3"))
            async with engine_of(triton):  # the next one, while this one still answers
                assert json.loads(await infer(engine, old, b"[1]", JSON)) == [3]


async def test_models_are_there_again_after_the_server_was(tmp_path: Path) -> None:
    code = score(tmp_path / "code", SCORE)
    with running(tmp_path / "triton") as triton:
        async with engine_of(triton) as (engine, given_up):
            models = [
                await engine.stage(folder(tmp_path / each, code, factor=each)) for each in "23"
            ]
            triton.kill()
            with pytest.raises(EngineDead, match="does not answer"):
                await infer(engine, models[0], b"[1]", JSON)
            with pytest.raises(EngineStartFailed, match="does not answer"):
                await engine.start()
            triton.start()
            for model in models:
                with pytest.raises(EngineDead, match="loads it again"):
                    await infer(engine, model, b"[1]", JSON)
                assert not engine.ready(model)
                with pytest.raises(NotReady):
                    await infer(engine, model, b"[1]", JSON)
            await until_async(lambda: all(map(engine.ready, models)))
            answers = [json.loads(await infer(engine, each, b"[1]", JSON)) for each in models]
            assert answers == [[2], [3]]
            assert not given_up


async def test_server_that_does_not_load_on_demand_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(EngineStartFailed, match="--model-control-mode=explicit")
    with running(tmp_path / "triton", mode="none") as triton, refused:
        async with engine_of(triton):
            pass


class Journal:
    """Of an update that nobody follows."""

    def step(self, step: Phase, done: float, detail: str) -> None: ...

    def refused(self, adapter: Digest, error: StackedError) -> None: ...

    async def commit(self, generation: int) -> None: ...


async def test_group_is_updated_live_under_requests(triton: Triton, tmp_path: Path) -> None:
    code = score(tmp_path / "code", SCORE)

    def group(factors: list[int]) -> tuple[Member, ...]:
        return tuple(
            Member(
                ModelId(f"ocid1.datasciencemodel.oc1..{factor}"),
                folder(tmp_path / f"{factor}", code, factor=str(factor)),
                f"key{at}",
            )
            for at, factor in enumerate(factors)
        )

    before, after = [2, 3, 4, 5], [2, 3, 40, 50]
    old, new = group(before), group(after[2:])
    new = (*old[:2], *(replace(each, key=f"key{at}") for at, each in enumerate(new, start=2)))
    async with engine_of(triton) as (engine, _):
        live: Live[ModelHandle] = Live(engine, Routing.of(None, (), {}, 0), drain_seconds=30)
        await live.update(None, old, Journal())
        seen: set[tuple[int, int]] = set()
        stop = asyncio.Event()

        async def client(first: int) -> None:
            for at in itertools.cycle(range(4)):
                if stop.is_set():
                    return
                key = (at + first) % 4
                route, lease = live.admit({"model-key": f"key{key}"})
                try:
                    assert route.handle is not None
                    (answer,) = json.loads(await infer(engine, route.handle, b"[1]", JSON))
                finally:
                    lease.release()
                seen.add((key, answer))
                wanted = before if route.generation == 1 else after
                assert answer == wanted[key]

        clients = [asyncio.create_task(client(first)) for first in range(4)]
        await until_async(lambda: len(seen) == 4)
        report = await live.update(None, new, Journal())
        await until_async(lambda: len(seen) == 6)
        stop.set()
        await asyncio.gather(*clients)
        assert (len(report.loaded), len(report.dropped), report.left) == (2, 2, ())
        assert len(triton.loaded) == 4
        bad = folder(tmp_path / "bad", code, factor="-1")
        with pytest.raises(UpdateFailed, match="a factor below 0"):
            await live.update(None, (*new[:3], replace(new[3], content=bad)), Journal())
        assert len(triton.loaded) == 4
        live.close()
