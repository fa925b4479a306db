"""The server process: what it refuses before it starts, how it stops, and when its engine dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml

from stacked.api.process import EngineLog
from tests.conftest import PROMPT, TinyModels, complete, ocid
from tests.serving import Server, free_port, stop, wait_until_healthy
from tests.waiting import until

pytestmark = pytest.mark.engine


def write_config(
    directory: Path, models: TinyModels, port: int, engine: dict[str, object] | None = None
) -> Path:
    tree = {
        "base": {"model": str(models.base)},
        "group": {"members": [{"key": "a", "source": str(models.adapters["a"])}]},
        "engine": {"max_model_len": 256, **(engine or {})},
        "server": {"port": port, "drain_seconds": 5},
    }
    path = directory / "one.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def run_serve(directory: Path, config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stacked", "serve", str(config), "--data-dir", "data"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=240)


def test_port_in_use_is_said_before_anything_is_started(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_serve(tmp_path, write_config(tmp_path, tiny_models, port))
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "Importing vLLM" not in done.stderr


def test_what_cannot_be_is_refused_before_the_engine_starts(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    """By one option here; `tests/engine/test_plan.py` and `test_options.py` have the others."""
    config = write_config(tmp_path, tiny_models, free_port(), {"max_model_length": 64})
    done = run_serve(tmp_path, config)
    assert done.returncode == 1
    assert "did you mean max_model_len" in " ".join(done.stderr.split())
    assert "loading the base" not in done.stderr


def test_interrupt_during_start_ends_it_soon(tiny_models: TinyModels, tmp_path: Path) -> None:
    port = free_port()
    config = write_config(tmp_path, tiny_models, port)
    command = [sys.executable, "-m", "stacked", "serve", str(config), "--data-dir", "data"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    try:
        health = _first_answer(f"http://127.0.0.1:{port}/health")
        assert health.status_code == 503
        assert health.json()["code"] == "NotReady"
        early = httpx.post(f"http://127.0.0.1:{port}/predict", json={"prompt": "x"})
        assert early.status_code == 503
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=240) == 130
    finally:
        stop(process)


def test_engine_that_dies_is_told_to_every_client_and_comes_back_with_the_same_group(
    server: Server, answers: dict[str, str]
) -> None:
    with server.client() as client:
        before = client.get("/health").json() | {"generation": None}
        status = _kill_engine_under_a_request(server)
        assert status >= 500
        wait_until_healthy(server)
        # Models that were loaded one by one counted generations too, and are not in the records.
        assert client.get("/health").json() | {"generation": None} == before
        assert {key: complete(client, key) for key in answers} == answers
        # What it was told by its environment holds: members are removed and loaded as before.
        assert client.delete("/models/a").status_code == 200
        assert client.post(f"/models/{ocid('a')}").status_code == 200
    assert "the engine has died" in server.printed()
    assert "engine-" in server.printed()  # the log's name


def test_engine_that_dies_again_and_again_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EngineLog(tmp_path / "log", (1, 2))
    assert log.may_restart()
    monkeypatch.setenv("STACKED_RESTARTS", f"3:{time.time():.0f}")
    assert not log.may_restart()
    monkeypatch.setenv("STACKED_RESTARTS", f"3:{time.time() - 3600:.0f}")
    assert log.may_restart()


def _kill_engine_under_a_request(server: Server) -> int:
    """Kill the engine's processes while a request runs; the status that its client got."""
    statuses: list[int] = []

    def ask() -> None:
        body = {"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True}
        statuses.append(httpx.post(f"{server.url}/predict", json=body, timeout=60).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    until_it_runs(server)
    for child in _children(server.process.pid):
        os.kill(child, signal.SIGKILL)
    thread.join(timeout=60)
    return statuses[0]


def until_it_runs(server: Server) -> None:
    """Return when a request is in the engine, as its metrics say."""
    running = re.compile(r"^vllm:num_requests_running\S* [1-9]", re.MULTILINE)
    until(lambda: running.search(httpx.get(f"{server.url}/metrics", timeout=60).text))


def _children(parent: int) -> list[int]:
    """The engine's processes: children of the server that are not Python's resource tracker."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == parent and "resource_tracker" not in command:
            found.append(int(entry.name))
    assert found, "the server has no engine process"
    return found


def _first_answer(url: str) -> httpx.Response:
    answers: list[httpx.Response] = []

    def answered() -> bool:
        with contextlib.suppress(httpx.TransportError):
            answers.append(httpx.get(url, timeout=5))
        return bool(answers)

    until(answered)
    return answers[0]
