"""The real Triton of the `nvidia-pytriton` wheel, which has one backend: python.

STACKED_TRITON names the site-packages of the environment in which that wheel is installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.processes import descendants, wait_until_gone
from tests.serving import free_port
from tests.waiting import until

VARIABLE = "STACKED_TRITON"


@dataclass
class Triton:
    """A server that can be started more than once, each time on the same port."""

    packages: Path
    directory: Path
    mode: str = "explicit"
    threads: int = 8  # for HTTP, as by default
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return when it answers."""
        home = self.packages / "pytriton" / "tritonserver"
        backends, models = self.directory / "backends", self.directory / "models"
        if not backends.exists():
            models.mkdir(parents=True)
            shutil.copytree(home / "backends", backends)
            for stub in (home / "python_backend_stubs" / "3.11").iterdir():
                shutil.copy(stub, backends / "python")
        options = {
            "model-repository": models,
            "backend-directory": backends,
            "model-control-mode": self.mode,
            "http-address": "127.0.0.1",
            "http-port": self.port,
            "allow-grpc": "false",
            "allow-metrics": "false",
            "http-thread-count": self.threads,
        }
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.packages / "nvidia_pytriton.libs"),
            "PYTHONPATH": str(self.packages),
            "PATH": f"{self.packages.parents[2] / 'bin'}:{os.environ['PATH']}",
        }
        with (self.directory / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [home / "bin" / "tritonserver", *(f"--{n}={v}" for n, v in options.items())],
                stdout=log,
                stderr=log,
                env=environment,
            )
        until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.directory / "log.txt").read_text()[-2000:]
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/v2/health/live").status_code == 200
        return False

    def kill(self) -> None:
        """End it, and the processes that it leaves when it is killed."""
        started = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        for pid, _ in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        wait_until_gone(started)

    @property
    def loaded(self) -> list[str]:
        """Names of all that answers."""
        stats = httpx.get(f"{self.url}/v2/models/stats").json()
        return sorted(row["name"] for row in stats["model_stats"])


def packages() -> Path:
    """Skips the test where there is no Triton."""
    found = os.environ.get(VARIABLE)
    if not found:
        pytest.skip(f"{VARIABLE} does not name a site-packages with nvidia-pytriton")
    return Path(found)


@contextlib.contextmanager
def running(directory: Path, mode: str = "explicit", threads: int = 8) -> Iterator[Triton]:
    triton = Triton(packages(), directory, mode, threads)
    triton.start()
    try:
        yield triton
    finally:
        # Not killed at once: it then leaves what was pushed in /tmp.
        triton.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            triton.process.wait(40)
        triton.kill()
