"""TorchScript, exported programs, SavedModel and score.py beside one another, and other Pythons."""

from __future__ import annotations

import json
import os
import signal
import venv
from dataclasses import replace
from pathlib import Path

import pytest

from stacked.core import Runtime
from stacked.errors import (
    EngineDead,
    EngineNotInstalled,
    EngineStartFailed,
    ParameterInvalid,
)
from tests.models import saved
from tests.models.making import (
    ask,
    files,
    infer,
    pids_of,
    request,
    running,
    score,
    script,
    times,
    torch_module,
)
from tests.models.measure import measure
from tests.waiting import until_async

PLUS = "import sys\ndef predict(data): return [data, sys.prefix]\n"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
async def test_runtimes_answer_beside_one_another_and_one_that_ends_leaves_the_others(
    tmp_path: Path,
) -> None:
    code = score(tmp_path / "code", PLUS)
    async with running() as (engine, _):
        scripted = await engine.stage(script(tmp_path / "script", 2))
        torch_pid = pids_of(engine)[0]
        tensorflow = await engine.stage(saved.save(tmp_path / "saved", 2))
        onnx = await engine.stage(times(tmp_path / "onnx", 2))
        own = await engine.stage(files(code.path, Runtime.SCORE))
        assert len(pids_of(engine)) == 4
        handles = {handle.digest: handle for handle in (scripted, tensorflow, onnx, own)}
        assert not await engine.verify(handles, lambda _: None)
        for handle in (scripted, tensorflow, onnx):
            assert await ask(engine, handle, [[1, 2, 3]]) == [2, 4, 6]
        for handle in (tensorflow, onnx):
            spec = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
            assert handle.described("")["inputs"] == [spec]
        sent = request([1], [1], outputs=[{"name": "z"}])
        with pytest.raises(ParameterInvalid, match=r"this model has \['OUTPUT__0'\]"):
            await infer(engine, scripted, sent, "application/json")
        with pytest.raises(ParameterInvalid, match="BYTES"):
            await ask(engine, scripted, ["text"], "BYTES")
        os.kill(torch_pid, signal.SIGKILL)
        await until_async(lambda: not engine.ready(scripted))
        for handle in (tensorflow, onnx):
            assert await ask(engine, handle, [[1, 2, 3]]) == [2, 4, 6]


@pytest.mark.long  # importing what exports a program takes many seconds
async def test_exported_program_knows_its_inputs(tmp_path: Path) -> None:
    import torch

    rows = {"x": {0: torch.export.Dim("rows")}}
    program = torch.export.export(torch_module(2), (torch.zeros(2, 3),), dynamic_shapes=rows)
    (tmp_path / "m").mkdir()
    torch.export.save(program, tmp_path / "m" / "model.pt2")
    async with running() as (engine, _):
        handle = await engine.stage(files(tmp_path / "m", Runtime.TORCH))
        assert not await engine.verify({handle.digest: handle}, lambda _: None)
        assert await ask(engine, handle, [[1, 2, 3]]) == [2, 4, 6]
        with pytest.raises(ParameterInvalid, match=r"expected \[-1, 3\]"):
            await ask(engine, handle, [[1, 2]])


async def test_code_runs_under_the_python_that_its_environment_names(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    code = score(tmp_path / "code", PLUS)
    other = replace(code, python=str(tmp_path / "venv" / "bin" / "python"))
    async with running() as (engine, _):
        handle = await engine.stage(files(code.path, Runtime.SCORE, other))
        answer = json.loads(await infer(engine, handle, b"1", "application/json"))
        assert answer == [1, str(tmp_path / "venv")]
        onnx = replace(times(tmp_path / "onnx", 2), code=other)
        with pytest.raises(EngineNotInstalled, match=r"stacked\[models\]"):
            await engine.stage(onnx)
        for python in ("/nowhere/python", "/bin/false"):
            nowhere = replace(code, python=python)
            with pytest.raises(EngineStartFailed, match=python):
                await engine.stage(files(code.path, Runtime.SCORE, nowhere))


async def test_model_may_be_below_its_folder_and_have_any_name(tmp_path: Path) -> None:
    times(tmp_path / "both" / "a", 2).path.rename(tmp_path / "both" / "1")
    first = tmp_path / "both" / "1" / "model.onnx"
    first.rename(first.with_name("first.onnx"))
    async with running() as (engine, _):
        only = await engine.stage(files(tmp_path / "both"))
        assert await ask(engine, only, [[1, 2, 3]]) == [2, 4, 6]


@pytest.mark.parametrize("runtime", ["onnx", "score"])
async def test_live_update_under_clients_gives_no_wrong_and_no_failed_answer(
    tmp_path: Path, runtime: str
) -> None:
    found = await measure(
        tmp_path, count=12, replaced=6, clients=4, runtime=runtime, kill=True, processes=2
    )
    assert (found["wrong"], found["failed_by_the_update"], found["given_up"]) == (0, 0, [])
    assert found["contents"] > 6
    assert set(found["failed_by_the_kill"]) <= {EngineDead.code}
