"""A real server as a process of its own, for the tests that speak HTTP to it.

Starting takes half a minute or more, so one server is shared by all tests of a session that can.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.processes import descendants

START_SECONDS = 300


@dataclass
class Server:
    """A `stacked serve`: its address, its process, and where its files are."""

    url: str
    directory: Path
    command: tuple[str, ...]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def terminal(self) -> Path:
        """What it printed."""
        return self.directory / "terminal.txt"

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, **options)  # type: ignore[arg-type]

    def printed(self) -> str:
        return self.terminal.read_text(encoding="utf-8")

    def start(self, path: str = "/health", status: int = 200) -> None:
        """Start it, also once more after its end; return when `path` answers with `status`."""
        with self.terminal.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **self.environment},
            )
        wait_until_healthy(self, path, status)


def engine_process(server: Server) -> int:
    """The process that computes: forked by one that has imported vLLM before."""
    started = descendants(server.process.pid)
    (found,) = {pid for child, _ in started for pid, _ in descendants(child)}
    return found


def metric(server: Server, series: str) -> float:
    """The value of a series, over all the labels that are not named; 0 if it is not there."""
    lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if re.match(rf"{re.escape(series)}[{{ ]", line)
    )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def serving(
    *arguments: str,
    directory: Path,
    port: int,
    environment: Mapping[str, str] | None = None,
    ends_with: int = 0,
    path: str = "/health",
    status: int = 200,
    scheme: str = "http",
) -> Iterator[Server]:
    """Run `stacked serve` with these arguments until the block ends; its exit code is checked.

    The block begins when `path` answers with `status`.
    """
    command = (sys.executable, "-m", "stacked", "serve", *arguments)
    server = Server(f"{scheme}://127.0.0.1:{port}", directory, command, environment or {})
    try:
        server.start(path, status)
        yield server
    finally:
        code = stop(server.process)
    assert code == ends_with, f"the server ended with {code}:\n{server.printed()}"


def stop(process: subprocess.Popen[bytes]) -> int:
    """Ask the process to end, and end it where it does not; its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(timeout=30)


def wait_until_healthy(server: Server, path: str = "/health", status: int = 200) -> None:
    """Return when `path` answers with `status`; AssertionError with what was printed if never."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise AssertionError(f"the server did not start:\n{server.printed()}")
        try:
            if httpx.get(f"{server.url}{path}", timeout=5).status_code == status:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)
    raise AssertionError(f"the server was not healthy in {START_SECONDS} s:\n{server.printed()}")
