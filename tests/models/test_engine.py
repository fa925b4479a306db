"""Models in real worker processes, through the interface that a change of a group uses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from stacked.core import Runtime
from stacked.errors import (
    BodyInvalid,
    CanaryFailed,
    EngineDead,
    EngineLoadFailed,
    EngineStartFailed,
    GroupImpossible,
    ModelAnswerInvalid,
    ModelFailed,
    ModelTooSlow,
    NotReady,
    ParameterInvalid,
)
from stacked.models import pool, workers
from tests.models.making import (
    ask,
    endless,
    files,
    folder,
    infer,
    pids_of,
    processes,
    request,
    resident,
    running,
    same,
    save_onnx,
    score,
    tensor,
    times,
)
from tests.processes import alive, descendants, wait_until_gone
from tests.waiting import until_async

ROW = [1.5, -2.0, 0.1]


def quiet(_: int) -> None: ...


async def test_onnx_model_answers_by_the_protocol_and_describes_itself(tmp_path: Path) -> None:
    async with running() as (engine, _):
        handle = await engine.stage(times(tmp_path / "m", 2))
        answer = json.loads(
            await infer(engine, handle, request([ROW], [1, 3], id="7"), "application/json", "key")
        )
        # The float32 nearest to 0.1, doubled, as a float64: nothing is rounded on its way.
        data = [3.0, -4.0, 0.20000000298023224]
        output = {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": data}
        version = handle.digest.removeprefix("sha256:")[:12]
        assert answer == {
            "model_name": "key",
            "model_version": version,
            "id": "7",
            "outputs": [output],
        }
        spec = {"datatype": "FP32", "shape": [-1, 3]}
        assert handle.described("key") == {
            "name": "key",
            "versions": [version],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", **spec}],
            "outputs": [{"name": "y", **spec}],
        }
        assert engine.ready(handle)
        assert resident(engine) > 10_000_000
        assert not await engine.verify({handle.digest: handle}, quiet)
        with pytest.raises(ParameterInvalid, match="expected FP32"):
            await ask(engine, handle, [[1, 2, 3]], "INT64")
        with pytest.raises(BodyInvalid):
            await infer(engine, handle, b'{"inputs": NaN}', "application/json")
        await engine.remove(handle)
        await engine.remove(handle)
        assert not engine.ready(handle)
        assert pids_of(engine) == []
        with pytest.raises(NotReady):
            await ask(engine, handle, [ROW])


VALUES = [
    (TensorProto.INT64, "INT64", [2**63 - 1, -(2**63), 2**53 + 1]),
    (TensorProto.UINT64, "UINT64", [2**64 - 1, 0, 3]),
    (TensorProto.BOOL, "BOOL", [True, False]),
    (TensorProto.STRING, "BYTES", ["", "ä€😀", "a\0b"]),
    (TensorProto.DOUBLE, "FP64", [0.1, 1e300, 5e-324]),
    (TensorProto.FLOAT, "FP32", []),
]


async def test_values_pass_unchanged(tmp_path: Path) -> None:
    async with running() as (engine, _):
        for kind, datatype, data in VALUES:
            handle = await engine.stage(same(tmp_path / datatype, kind))
            assert await ask(engine, handle, data, datatype) == data


async def test_one_that_does_not_load_or_verify_is_refused_and_the_others_stay(
    tmp_path: Path,
) -> None:
    async with running() as (engine, _):
        good = await engine.stage(times(tmp_path / "good", 2))
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "model.onnx").write_bytes(b"no model")
        with pytest.raises(EngineLoadFailed, match=r"runtimes|onnx"):
            await engine.stage(files(tmp_path / "bad"))
        (tmp_path / "none").mkdir()
        with pytest.raises(EngineLoadFailed):
            await engine.stage(files(tmp_path / "none"))
        nan = await engine.stage(times(tmp_path / "nan", float("nan")))
        wrong = times(tmp_path / "wrong", 3)
        (wrong.path / "example.json").write_bytes(request([ROW], [1, 2]))
        unlike = await engine.stage(files(wrong.path))
        failed = await engine.verify({h.digest: h for h in (good, nan, unlike)}, quiet)
        assert {digest: type(error) for digest, error in failed.items()} == {
            nan.digest: CanaryFailed,
            unlike.digest: CanaryFailed,
        }
        with pytest.raises(ModelAnswerInvalid, match="output 'y' has NaN"):
            await ask(engine, nan, [ROW])
        assert await ask(engine, good, [[1, 2, 3]]) == [2, 4, 6]


async def test_endless_onnx_is_ended_without_its_process(tmp_path: Path) -> None:
    async with running(deadline_seconds=0.5) as (engine, given_up):
        slow = await engine.stage(endless(tmp_path / "slow"))
        quick = await engine.stage(times(tmp_path / "quick", 2))
        pids = pids_of(engine)
        answers = [asyncio.create_task(ask(engine, slow, [1], "INT64")) for _ in range(3)]
        for answer in answers:
            with pytest.raises(ModelTooSlow):
                await answer
        assert await ask(engine, quick, [[1, 2, 3]]) == [2, 4, 6]
        assert pids_of(engine) == pids
        assert not given_up


async def test_all_is_there_again_after_a_process_was_killed(tmp_path: Path) -> None:
    async with running(processes=2) as (engine, given_up):
        handles = [await engine.stage(times(tmp_path / str(each), each)) for each in range(1, 6)]
        first, _ = pids_of(engine)
        os.kill(first, signal.SIGKILL)
        for handle in handles:  # the other one answers, and later both
            with contextlib.suppress(EngineDead):
                await ask(engine, handle, [ROW])
        await until_async(lambda: len(pids_of(engine)) == 2 and first not in pids_of(engine))
        for pid in pids_of(engine):
            os.kill(pid, signal.SIGKILL)
        await until_async(lambda: not engine.ready(handles[0]))
        with pytest.raises(NotReady):
            await ask(engine, handles[0], [ROW])
        await until_async(lambda: all(map(engine.ready, handles)))
        for factor, handle in enumerate(handles, start=1):
            assert await ask(engine, handle, [[1, 2, 3]]) == [factor, 2 * factor, 3 * factor]
        assert not given_up


SEES = """
import os

def load_model():
    return os.environ.get("CUDA_VISIBLE_DEVICES")

def predict(data, model):
    return model
"""


async def test_a_pinned_model_is_in_processes_that_see_its_cards_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    anywhere = folder(tmp_path / "m", score(tmp_path / "code", SEES))
    pinned = {cards: anywhere.on_cards(cards) for cards in ((), (1,), (2, 0))}
    assert pinned[()] is anywhere
    assert len({each.digest for each in pinned.values()}) == 3
    assert {each.stored for each in pinned.values()} == {anywhere.stored}
    async with running() as (engine, _):
        seen = {}
        for cards, content in pinned.items():
            seen[cards] = await ask_score(engine, await engine.stage(content), 1)
        assert len(pids_of(engine)) == 3
    assert seen == {(): "GPU-a,GPU-b,GPU-c", (1,): "GPU-b", (2, 0): "GPU-c,GPU-a"}


async def test_load_that_is_given_up_leaves_nothing_and_others_load_meanwhile(
    tmp_path: Path,
) -> None:
    slow = "import time\n" + SCORE.replace("    with open", "    time.sleep(0.3)\n    with open")
    code = score(tmp_path / "code", slow)
    async with running(processes=2) as (engine, _):
        contents = [folder(tmp_path / str(at), code, factor=str(at)) for at in range(1, 4)]
        tasks = [asyncio.create_task(engine.stage(content)) for content in contents]
        await until_async(lambda: len(pids_of(engine)) == 2)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        second, third = await tasks[1], await tasks[2]
        assert await ask_score(engine, second, [1]) == {"prediction": [2.0]}
        # The processes end with the last model: none is left of the one that was given up.
        await engine.remove(second, third)
        assert pids_of(engine) == []


@pytest.mark.parametrize("how", ["given up", "too slow"])
async def test_load_that_hangs_holds_up_no_other_and_is_undone_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    gate, begun, undone = tmp_path / "gate", tmp_path / "begun", tmp_path / "undone"
    wait = f"""
    if model_folder.endswith("slow"):
        open({str(begun)!r}, "w").close()
        while not os.path.exists({str(gate)!r}): time.sleep(0.01)
"""
    source = SCORE.replace("    with open", wait + "    with open")
    source += f"    open({str(undone)!r}, 'w').close()\n"
    code = score(tmp_path / "code", source)
    async with running() as (engine, given_up):
        good = await engine.stage(folder(tmp_path / "good", code, factor="2"))
        seconds = pool.LOAD_SECONDS
        monkeypatch.setattr(pool, "LOAD_SECONDS", 1.0 if how == "too slow" else seconds)
        slow = asyncio.create_task(engine.stage(folder(tmp_path / "slow", code, factor="3")))
        await until_async(begun.exists)
        monkeypatch.setattr(pool, "LOAD_SECONDS", seconds)
        pids = pids_of(engine)
        if how == "given up":
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
        else:
            with pytest.raises(EngineLoadFailed, match="no answer in its time"):
                await slow
        again = await engine.stage(folder(tmp_path / "again", code, factor="4"))
        assert await ask_score(engine, good, [1]) == {"prediction": [2.0]}
        assert await ask_score(engine, again, [1]) == {"prediction": [4.0]}
        assert not undone.exists()
        gate.touch()
        await until_async(undone.exists)
        (worker,) = next(iter(engine._pools.values())).workers
        assert worker.loaded.keys() == {good.number, again.number}
        assert (pids_of(engine), given_up) == (pids, [])


async def test_memory_of_an_unloaded_model_goes_back_to_the_system(tmp_path: Path) -> None:
    size = 64 * 1024**2
    weight = numpy_helper.from_array(np.ones(size // 4, np.float32), "w")
    x, y = tensor("x", TensorProto.FLOAT, 1), tensor("y", TensorProto.FLOAT, "n")
    add = helper.make_node("Add", ["x", "w"], ["y"])
    large = save_onnx(tmp_path / "large", [add], [x], [y], weight)
    async with running() as (engine, _):
        await engine.stage(times(tmp_path / "small", 2))
        before = resident(engine)
        handle = await engine.stage(large)
        assert handle.bytes > size
        assert resident(engine) > before + size
        await engine.remove(handle)
        assert resident(engine) < before + size / 2


async def test_memory_that_is_short_is_a_refusal_before_anything_is_loaded(tmp_path: Path) -> None:
    async with running(reserve_bytes=2**62) as (engine, _):
        with pytest.raises(GroupImpossible, match="in reserve"):
            await engine.stage(times(tmp_path / "m", 2))
        assert pids_of(engine) == []


SCORE = """
import json, os, sys, time, ctypes, threading
from functools import lru_cache

@lru_cache(maxsize=10)
def load_model(model_folder):
    with open(os.path.join(model_folder, "factor")) as file:
        return {"factor": float(file.read())}

def predict(data, model=None, input_schema_path="none"):
    if isinstance(data, bytes):
        return {"prediction": len(data)}
    if not isinstance(data, str):
        return {"prediction": [each * model["factor"] for each in data]}
    print("printed", data)
    if data == "exit": sys.exit(3)
    if data == "memory": bytearray(1 << 60)
    if data == "nan": return float("nan")
    if data == "set": return {1}
    if data == "recursive": model["self"] = model; return model
    if data == "surrogate": return "\\ud800"
    if data == "raise": raise ValueError("no such row")
    if data == "gone": os._exit(4)
    if data == "crash": ctypes.string_at(0)
    if data == "loop":
        while True: pass
    if data == "modules": return sorted(name for name in sys.modules if "stacked" in name)
    if data == "environment": return [dict(os.environ), os.listdir("/proc/self/fd")]
    return data

def unload_model(model=None):
    load_model.cache_clear()
    print("unloaded", model)
"""


async def ask_score(engine: Any, handle: Any, value: Any) -> Any:
    body = json.dumps(value).encode()
    return json.loads(await infer(engine, handle, body, "application/json; charset=utf-8"))


async def test_score_py_may_do_as_it_likes_and_only_its_own_request_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = score(tmp_path / "code", SCORE)
    async with running() as (engine, given_up):
        double = await engine.stage(folder(tmp_path / "two", code, factor="2"))
        triple = await engine.stage(folder(tmp_path / "three", code, factor="3"))
        assert len(pids_of(engine)) == 1
        assert not await engine.verify({double.digest: double}, quiet)
        assert await ask_score(engine, double, [1, 2]) == {"prediction": [2.0, 4.0]}
        assert await ask_score(engine, triple, [1, 2]) == {"prediction": [3.0, 6.0]}
        raw = await infer(engine, double, b"\0\1", "application/octet-stream")
        assert json.loads(raw) == {"prediction": 2}
        for value, kind, why in [
            ("exit", ModelFailed, r"SystemExit: 3 \(score.py, line"),
            ("memory", ModelFailed, "MemoryError"),
            ("raise", ModelFailed, "ValueError: no such row"),
            ("nan", ModelAnswerInvalid, "not JSON"),
            ("set", ModelAnswerInvalid, "set is not JSON"),
            ("recursive", ModelAnswerInvalid, "not JSON"),
        ]:
            with pytest.raises(kind, match=why):
                await ask_score(engine, double, value)
        assert await ask_score(engine, double, "surrogate") == "\ud800"
        environment, open_files = await ask_score(engine, double, "environment")
        assert not {"HOME", "STACKED_DATA_DIR", "PYTHONPATH"} & environment.keys()
        assert len(open_files) == 5  # three, its socket, and the listing itself
        assert len(pids_of(engine)) == 1
        await engine.remove(double)
        assert await ask_score(engine, triple, [1]) == {"prediction": [3.0]}
        assert not given_up
    printed = capfd.readouterr()
    assert "printed raise" in printed.err
    assert "unloaded {'factor': 2.0" in printed.err
    assert not list((tmp_path / "code").glob("__pycache__"))


@pytest.mark.parametrize("fault", ["loop", "crash", "gone"])
async def test_model_that_ends_its_process_three_times_is_given_up(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_GRACE_SECONDS", 0.2)
    code = score(tmp_path / "code", SCORE)
    async with running(deadline_seconds=0.3 if fault == "loop" else 60.0) as (engine, given_up):
        bad = await engine.stage(folder(tmp_path / "bad", code, factor="2"))
        good = await engine.stage(folder(tmp_path / "good", code, factor="3"))
        for _ in range(3):
            await until_async(lambda: engine.ready(bad) and engine.ready(good))
            one = asyncio.create_task(ask_score(engine, bad, fault))
            if fault != "loop":
                with pytest.raises(EngineDead, match="safe to repeat"):
                    await one
            else:
                with pytest.raises(ModelTooSlow):
                    await one
        await until_async(lambda: given_up)
        await until_async(lambda: engine.ready(good))
        assert [digest for digest, _ in given_up] == [bad.digest]
        assert not engine.ready(bad)
        assert await ask_score(engine, good, [1]) == {"prediction": [3.0]}
        with pytest.raises(NotReady):
            await ask_score(engine, bad, [1])


async def test_model_that_ends_its_process_while_it_loads_is_refused(tmp_path: Path) -> None:
    dies = SCORE + "\nreal = load_model\ndef load_model(model_folder):\n"
    dies += "    if 'bad' in model_folder: os._exit(5)\n    return real(model_folder)\n"
    dies += "load_model.cache_clear = real.cache_clear\n"
    code = score(tmp_path / "code", dies)
    async with running() as (engine, given_up):
        good = await engine.stage(folder(tmp_path / "good", code, factor="3"))
        with pytest.raises(EngineLoadFailed, match="exit code 5"):
            await engine.stage(folder(tmp_path / "bad", code, factor="2"))
        await until_async(lambda: engine.ready(good))
        assert await ask_score(engine, good, [1]) == {"prediction": [3.0]}
        assert not given_up


async def test_changed_code_is_a_process_of_its_own_which_ends_with_its_last_model(
    tmp_path: Path,
) -> None:
    first = score(tmp_path / "first", SCORE)
    second = score(tmp_path / "second", SCORE.replace("each * model", "100 + each * model"))
    async with running() as (engine, _):
        old = await engine.stage(folder(tmp_path / "old", first, factor="2"))
        new = await engine.stage(folder(tmp_path / "new", second, factor="2"))
        assert await ask_score(engine, old, [1]) == {"prediction": [2.0]}
        assert await ask_score(engine, new, [1]) == {"prediction": [102.0]}
        assert len(pids_of(engine)) == 2
        await engine.remove(old)
        assert len(pids_of(engine)) == 1
        assert await ask_score(engine, new, [1]) == {"prediction": [102.0]}


async def test_score_py_for_one_model_reads_the_file_beside_it(tmp_path: Path) -> None:
    source = """
import os
def load_model(model_file_name="factor"):
    with open(os.path.join(os.path.dirname(os.path.realpath(__file__)), model_file_name)) as file:
        return int(file.read())
def predict(data, model=load_model()):
    return data * model
"""
    code = score(tmp_path / "own", source, factor="7")
    async with running() as (engine, _):
        handle = await engine.stage(files(code.path, Runtime.SCORE))
        assert await ask_score(engine, handle, 6) == 42


def test_nothing_is_left_when_the_server_is_killed(tmp_path: Path) -> None:
    code = score(tmp_path / "code", SCORE)
    folder(tmp_path / "one", code, factor="2")
    times(tmp_path / "two", 2)
    program = f"""
        import asyncio, json
        from pathlib import Path
        from stacked.core import Runtime
        from tests.models.making import files, infer, running, score
        from stacked.core import Code, Digest
        async def main():
            async with running() as (engine, _):
                code = Code(Digest("sha256:" + "0" * 64), Path({str(code.path)!r}))
                one = await engine.stage(files(Path({str(tmp_path)!r}) / "one", Runtime.DATA, code))
                await engine.stage(files(Path({str(tmp_path)!r}) / "two"))
                loop = asyncio.create_task(infer(engine, one, b'"loop"', ""))
                await asyncio.sleep(0.1)
                print("ready", flush=True)
                await asyncio.sleep(600)
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        workers = descendants(server.pid)
        assert len(alive(list(workers))) == 2
        server.kill()
        wait_until_gone(workers)


WHO = """
import os
def predict(data):
    try:
        held = open(data).read()
    except PermissionError:
        held = "refused"
    status = dict(line.split(":\\t") for line in open("/proc/self/status") if ":\\t" in line)
    caps = {status[name].strip() for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")}
    return {"uid": os.getuid(), "held": held, "caps": sorted(caps), "groups": os.getgroups()}
"""


SYSTEM_PYTHON = "/usr/bin/python3"


def may_others_run() -> bool:
    """Whether another user can run the workers: root asks, whose own Python may be private."""
    program = [SYSTEM_PYTHON, "-c", "import sys; open(sys.argv[1])", workers.__file__]
    command = ["setpriv", "--reuid=65534", "--clear-groups", *program]
    return os.getuid() == 0 and subprocess.run(command, check=False).returncode == 0


@pytest.mark.skipif(not may_others_run(), reason="other users cannot run Stacked's files here")
async def test_models_may_run_as_another_user_who_reads_nothing_of_the_server() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        secret = Path(place) / "key"
        secret.write_text("secret")
        secret.chmod(0o600)
        code = replace(score(Path(place) / "code", WHO), python=SYSTEM_PYTHON)
        model = folder(Path(place) / "m", code)
        async with running(user="nobody") as (engine, _):
            handle = await engine.stage(model)
            found = await ask_score(engine, handle, str(secret))
            assert found["uid"] == pwd.getpwnam("nobody").pw_uid
            assert found["held"] == "refused"
            assert found["caps"] == ["0000000000000000"]
            there = processes()
        wait_until_gone(there)
        async with running(user="nobody-of-that-name") as (engine, _):
            with pytest.raises(EngineStartFailed, match="nobody-of-that-name"):
                await engine.stage(model)
