"""How a server process ends: at a signal, and at once at a second one. Nothing is deployed here."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.processes import descendants, wait_until_gone
from tests.serving import Server, free_port, stop
from tests.waiting import until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    port = free_port()
    tree = {"server": {"port": port, "drain_seconds": 60, "runtime_updates": True}}
    (tmp_path / "control.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = (sys.executable, "-m", "stacked", "serve", "control.yaml", "--data-dir", "data")
    server = Server(f"http://127.0.0.1:{port}", tmp_path, command, {})
    server.start("/health/live")
    until(lambda: _state(server) == "none")  # a signal during the start is another end
    yield server
    stop(server.process)


def _state(server: Server) -> object:
    answer = httpx.get(f"{server.url}/stacked/status")
    assert answer.status_code == 200, answer.text
    return answer.json()["engine"]["state"]


def test_probes_of_a_server_without_a_deployment(server: Server) -> None:
    with server.client() as client:
        assert client.get("/health/live").json() == {"status": "live"}
        for path in ("/health", "/health/ready"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "NotReady")
            assert int(answer.headers["retry-after"]) >= 1
        assert "stacked_engine_state" in client.get("/metrics").text


def test_sigterm_is_a_clean_end(server: Server) -> None:
    started = descendants(server.process.pid)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0
    wait_until_gone(started)


def test_second_signal_ends_at_once(server: Server) -> None:
    """An upload would have a minute to arrive."""
    started = descendants(server.process.pid)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as upload:
        upload.sendall(
            b"POST /20190101/models HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{"
        )
        httpx.get(f"{server.url}/health/live")  # sent later, answered: the upload has been read
        server.process.send_signal(signal.SIGTERM)
        until(lambda: not _listens(server))
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=20) == 128 + signal.SIGINT
    wait_until_gone(started)


def _listens(server: Server) -> bool:
    try:
        httpx.get(f"{server.url}/health/live", timeout=5)
    except httpx.TransportError:
        return False
    return True
