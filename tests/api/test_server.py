"""The server process: what it refuses before it starts, how it stops, and when its engine dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
import yaml

from tests.conftest import PROMPT, TinyModels, complete
from tests.serving import (
    Server,
    engine_process,
    free_port,
    metric,
    stop,
    wait_until_healthy,
)
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
        assert client.delete("/models/c").status_code == 200
        before = client.get("/health").json()
        whole, stream = _killed_under_requests(server)
        assert (whole.status_code, whole.json()["code"]) == (503, "EngineDead")
        assert "it is safe to send the request again" in whole.json()["message"]
        assert int(whole.headers["retry-after"]) >= 1
        assert "the answer is incomplete" in json.loads(stream[-1])["error"]["message"]
        # HTTP is up meanwhile, and says so.
        assert client.get("/health/live").status_code == 200
        until(lambda: "SIGKILL" in reason(server))
        down = client.get("/health/ready")
        assert (down.status_code, down.json()["code"]) == (503, "NotReady")
        assert int(down.headers["retry-after"]) >= 1
        assert metric(server, 'stacked_engine_state{state="restarting"}') == 1
        status = client.get("/stacked/status").json()
        assert (status["engine"]["state"], status["groupName"]) == ("restarting", "deployed")
        assert "SIGKILL" in status["engine"]["reason"]
        wait_until_healthy(server, "/health/ready")
        # What was loaded and removed one by one stays so, and the generation does not go back.
        assert client.get("/health").json() == before
        assert client.post("/models/c").status_code == 200
        assert {key: complete(client, key) for key in answers} == answers
        assert metric(server, 'stacked_engine_deaths_total{cause="signal"}') == 1
        assert metric(server, 'stacked_engine_restarts_total{outcome="succeeded"}') == 1
        assert metric(server, 'stacked_engine_state{state="serving"}') == 1
    assert "the engine has died: it was killed by signal 9" in server.printed()


def reason(server: Server) -> str:
    return str(httpx.get(f"{server.url}/health", timeout=60).json().get("message"))


def _killed_under_requests(server: Server) -> tuple[httpx.Response, list[str]]:
    """Kill the engine while two requests run: the whole answer of one, the other's events."""
    whole: list[httpx.Response] = []
    events: list[str] = []
    body = {"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True}

    def ask() -> None:
        whole.append(httpx.post(f"{server.url}/predict", json=body, timeout=60))

    def follow() -> None:
        url, streamed = f"{server.url}/v1/completions", {**body, "stream": True}
        with httpx.stream("POST", url, json=streamed, timeout=60) as answer:
            events.extend(line[6:] for line in answer.iter_lines() if line)

    threads = [threading.Thread(target=each) for each in (ask, follow)]
    for thread in threads:
        thread.start()
    until(lambda: events and metric(server, "vllm:num_requests_running") == 2)
    os.kill(engine_process(server), signal.SIGKILL)
    for thread in threads:
        thread.join(timeout=60)
    return whole[0], events


def _first_answer(url: str) -> httpx.Response:
    answers: list[httpx.Response] = []

    def answered() -> bool:
        with contextlib.suppress(httpx.TransportError):
            answers.append(httpx.get(url, timeout=5))
        return bool(answers)

    until(answered)
    return answers[0]
