"""Clients in environments of their own, made once below `.cache/clients` from the registries.

Nothing is installed into the environment that the tests run in. It must not know what is asked.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "clients"
INSTALL_SECONDS = 900
RUN_SECONDS = 300


class NotInstalled(Exception):
    """The client is not to be had here: no registry answers, or a program is missing."""


@dataclass(frozen=True)
class Client:
    """A program of `programs/` and the packages it needs; `.mjs` is node's, `.py` is Python's.

    Versions are left open: the newest of a client is the one that people install. Remove
    `.cache/clients` to try the newest again.
    """

    program: str
    packages: tuple[str, ...]

    @property
    def directory(self) -> Path:
        return CACHE / Path(self.program).stem

    def install(self) -> None:
        """Make the environment unless it is there already. Raises NotInstalled with the reason."""
        wanted, stamp = "\n".join(self.packages), self.directory / "installed.txt"
        self.directory.mkdir(parents=True, exist_ok=True)
        with _locked(self.directory.with_suffix(".lock")):
            if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
                return
            stamp.unlink(missing_ok=True)
            self._install_packages()
            stamp.write_text(wanted, encoding="utf-8")

    def run(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What the program told on its last line. AssertionError with its output if it failed."""
        source = HERE / "programs" / self.program
        if self._of_node:  # which looks for packages beside the program
            source = Path(shutil.copy(source, self.directory))
        command = ["node", str(source)] if self._of_node else [str(self._python), str(source)]
        done = subprocess.run(
            command,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            env=_environment(self.directory),
            cwd=self.directory,
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        told = json.loads(done.stdout.splitlines()[-1])
        assert isinstance(told, dict)
        return told

    @property
    def _of_node(self) -> bool:
        return self.program.endswith(".mjs")

    @property
    def _python(self) -> Path:
        return self.directory / "bin" / "python"

    def _install_packages(self) -> None:
        if self._of_node:
            if not (shutil.which("node") and shutil.which("npm")):
                raise NotInstalled("node and npm are not on PATH")
            options = ("--no-audit", "--no-fund", "--no-save", "--prefix", str(self.directory))
            _install("npm", "install", *options, *self.packages)
            return
        _install(sys.executable, "-m", "venv", "--clear", str(self.directory))
        _install(str(self._python), "-m", "pip", "install", "--quiet", *self.packages)


@contextmanager
def _locked(path: Path) -> Any:
    """Two runs of the tests in one checkout do not install the same thing at once."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"no end after {INSTALL_SECONDS} s: {_short(command)}") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "rror" in line] or [done.stderr]
        raise NotInstalled(f"{_short(command)}: {said[-1][-300:]}")


def _short(command: Sequence[str]) -> str:
    return " ".join([Path(command[0]).name, *command[1:]])[-200:]


def _environment(home: Path) -> dict[str, str]:
    """No settings of whoever runs the tests, and nothing that is fetched while a program runs."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
