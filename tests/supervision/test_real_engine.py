"""Deaths of a real engine: silence, a fatal adapter, memory, the end of the server.

Long: every death is followed by a start. `pytest -m long tests/supervision` runs them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import PROMPT, TinyModels, complete
from tests.processes import descendants, wait_until_gone
from tests.serving import (
    Server,
    engine_process,
    free_port,
    metric,
    serving,
    wait_until_healthy,
)
from tests.waiting import until

pytestmark = [pytest.mark.engine, pytest.mark.long]

HANG_SECONDS = 15


@pytest.fixture(scope="module")
def server(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("supervised")
    port = free_port()
    members = [{"key": key, "source": str(tiny_models.adapters[key])} for key in ("a", "b")]
    tree = {
        "base": {"model": str(tiny_models.base)},
        "group": {"members": members},
        "engine": {"max_model_len": 1024, "kv_cache_memory_bytes": 2**28},
        "server": {"port": port, "drain_seconds": 60},
        "supervision": {"hang": f"{HANG_SECONDS}s"},
    }
    path = directory / "one.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    arguments = [str(path), "--data-dir", "data"]
    with serving(*arguments, directory=directory, port=port) as running:
        yield running


def ask(
    server: Server, key: str, answers: list[httpx.Response], tokens: int = 900
) -> threading.Thread:
    """A request that runs until its engine ends, in a thread."""
    body = {"model": key, "prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True}

    def post() -> None:
        with contextlib.suppress(httpx.TransportError):  # a server that ends at once
            answers.append(httpx.post(f"{server.url}/v1/completions", json=body, timeout=300))

    thread = threading.Thread(target=post)
    thread.start()
    until(lambda: metric(server, "vllm:num_requests_running") >= 1)
    return thread


def kill_under(server: Server, key: str) -> httpx.Response:
    """What a request with this key gets when the engine is killed under it; it is back then."""
    answers: list[httpx.Response] = []
    thread = ask(server, key, answers)
    os.kill(engine_process(server), signal.SIGKILL)
    thread.join(timeout=120)
    until(lambda: httpx.get(f"{server.url}/health/ready").status_code == 503)
    wait_until_healthy(server, "/health/ready")
    return answers[0]


def test_silent_engine_is_ended_and_replaced(server: Server) -> None:
    before = {key: complete(server.client(), key) for key in ("base", "a", "b")}
    answers: list[httpx.Response] = []
    thread = ask(server, "a", answers)
    stopped = engine_process(server)
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    until(lambda: metric(server, "stacked_engine_deaths_total") == 1, 120)
    assert time.monotonic() - began >= HANG_SECONDS - 1
    thread.join(timeout=60)
    assert answers[0].status_code == 503, answers[0].text
    assert answers[0].json()["error"]["code"] == "EngineDead"
    wait_until_healthy(server, "/health/ready")
    assert not Path(f"/proc/{stopped}").exists()
    assert metric(server, 'stacked_engine_deaths_total{cause="hang"}') == 1
    assert {key: complete(server.client(), key) for key in before} == before


def test_adapter_that_engines_die_with_is_left_out_until_it_is_loaded_again(
    server: Server,
) -> None:
    before = {key: complete(server.client(), key) for key in ("base", "a", "b")}
    for _ in range(2):
        answer = kill_under(server, "b")
        assert "it is safe to send the request again" in answer.json()["error"]["message"]
    with server.client() as client:
        refused = client.post("/v1/completions", json={"model": "b", "prompt": PROMPT})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ModelQuarantined")
        assert "SIGKILL" in refused.json()["error"]["message"]
        assert metric(server, "stacked_quarantined_adapters") == 1
        until(lambda: state(server) == "NEEDS_ATTENTION")  # written soon after it is served
        models = client.get("/stacked/status").json()["models"]
        assert {each["inferenceKey"]: each["state"] for each in models} == {
            "a": "SUCCESS",
            "b": "FAILED",
        }
        assert {key: complete(client, key) for key in ("base", "a")} == {
            key: before[key] for key in ("base", "a")
        }
        assert client.post("/models/b").status_code == 200
        assert complete(client, "b") == before["b"]
        assert metric(server, "stacked_quarantined_adapters") == 0
        until(lambda: state(server) == "ACTIVE")


def test_adapter_that_engines_die_with_while_they_load_it_is_left_out(server: Server) -> None:
    before = {key: complete(server.client(), key) for key in ("base", "a", "b")}
    digests = {each["inferenceKey"]: each["digest"] for each in status(server)["models"]}
    # The server reads it only while the engine is created, and the header of the weights later too.
    (file,) = (server.directory / "data" / "store").rglob(
        f"*{digests['b'].removeprefix('sha256:')}*/adapter_config.json"
    )
    deaths = metric(server, "stacked_engine_deaths_total")
    with Watch(file) as watch:
        os.kill(engine_process(server), signal.SIGKILL)
        until(lambda: not ready(server))
        killed = 0
        while not ready(server):
            until(lambda: watch.waits() or ready(server), 240)
            opener = watch.opener()
            if opener is not None and opener != server.process.pid:
                os.kill(opener, signal.SIGKILL)
                killed += 1
            watch.go_on()
    assert killed == 2
    with server.client() as client:
        refused = client.post("/v1/completions", json={"model": "b", "prompt": PROMPT})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ModelQuarantined")
        # Not that it gave no answer in two minutes, as vLLM leaves a call whose engine dies.
        assert "while it loaded b: the engine has died" in refused.json()["error"]["message"]
        assert {key: complete(client, key) for key in ("base", "a")} == {
            key: before[key] for key in ("base", "a")
        }
        assert metric(server, "stacked_engine_deaths_total") == deaths + 1
        assert client.post("/models/b").status_code == 200
        assert complete(client, "b") == before["b"]


class Watch:
    """Whoever opens a file waits, at most 45 s, until it is let `go_on`: by a lease of Linux's."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_RDONLY)

    def __enter__(self) -> Watch:
        self._before = signal.signal(signal.SIGIO, signal.SIG_IGN)
        self._lease()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        signal.signal(signal.SIGIO, self._before)

    def waits(self) -> bool:
        return fcntl.fcntl(self._file, fcntl.F_GETLEASE) != fcntl.F_WRLCK

    def opener(self) -> int | None:
        """The process that waits, which /proc/locks has below the lease; None if it has ended."""
        lines = Path("/proc/locks").read_text().splitlines()
        (ours,) = (at for at, line in enumerate(lines) if _holds_lease(line, os.getpid()))
        (waiting,) = lines[ours + 1 : ours + 2] or [""]
        return int(waiting.split()[5]) if " -> " in waiting else None

    def go_on(self) -> None:
        """Let them open it, and watch again when they have closed it."""
        fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        self._lease()

    def _lease(self) -> None:
        def free() -> bool:
            with contextlib.suppress(BlockingIOError):
                fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
                return True
            return False

        until(free)


def _holds_lease(line: str, pid: int) -> bool:
    fields = line.split()
    return fields[1] == "LEASE" and fields[4] == str(pid)


def status(server: Server) -> dict[str, Any]:
    tree: dict[str, Any] = httpx.get(f"{server.url}/stacked/status", timeout=60).json()
    return tree


def state(server: Server) -> str:
    return str(status(server)["state"])


def ready(server: Server) -> bool:
    return bool(status(server)["engine"]["state"] == "serving")


def test_sigterm_lets_a_stream_finish_and_a_second_one_does_not(server: Server) -> None:
    started = descendants(server.process.pid)
    events: list[str] = []
    body = {"model": "a", "prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "stream": True}

    def follow() -> None:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=300) as answer:
            events.extend(line for line in answer.iter_lines() if line)

    thread = threading.Thread(target=follow)
    thread.start()
    until(lambda: events)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{server.url}/health/ready").status_code == 503)
    assert httpx.get(f"{server.url}/health/live").status_code == 200
    late = httpx.post(f"{server.url}/v1/completions", json={**body, "stream": False})
    assert (late.status_code, late.json()["error"]["code"]) == (503, "NotReady")
    thread.join(timeout=120)
    assert events[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in events[-2]
    assert server.process.wait(timeout=60) == 0
    wait_until_gone(started)
    server.start()
    started = descendants(server.process.pid)
    ask(server, "a", [])
    server.process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{server.url}/health/ready").status_code == 503)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=20) == 128 + signal.SIGTERM
    wait_until_gone(started)
    server.start()  # for the fixture, which ends it
