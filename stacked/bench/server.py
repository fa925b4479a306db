"""A `stacked serve` of the benchmark's own: a process on loopback with a directory for itself.

It must not know what is measured with it.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from stacked.errors import EngineStartFailed

_START_SECONDS = 900.0


@contextmanager
def serving(tree: dict[str, Any], directory: Path, data_dir: Path) -> Iterator[str]:
    """Serve a config's tree from `directory` (made here) until the block ends; its URL.

    Raises EngineStartFailed with what the server printed when it does not become healthy.
    """
    directory.mkdir(parents=True)
    config, terminal = directory / "config.yaml", directory / "terminal.txt"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    url = f"http://127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "stacked", "serve", str(config)]
    command += ["--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    with terminal.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--data-dir", str(data_dir)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        _wait_until_healthy(url, process, terminal)
        yield url
    finally:
        _stop(process)


def counted(url: str, name: str) -> float:
    """One of the server's counters, summed over its labels; 0 where there is none."""
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} "))
    )


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], terminal: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)
    printed = terminal.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise EngineStartFailed(f"the benchmark's server did not start:\n{printed}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
