"""Fetching the files of one PyPI package, with whatever installer and settings the user has."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from stacked.errors import PrepareFailed

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


def download_package(
    requirement: str, target: Path, fraction: Callable[[float], None] = lambda _: None
) -> Path:
    """Unpack the wheel of `name==version` into `target`, without its dependencies.

    pip is tried first, since it follows the user's own pip settings (mirrors, proxies, find-links),
    then uv. Raises PrepareFailed with the last one's message.
    """
    said = ""
    for tool, command in _installers(requirement, target):
        target.mkdir(parents=True, exist_ok=True)
        ok, said = _run(command, fraction)
        if ok:
            _unpack_wheels(target)
            return target
        said = f"{tool} said: {said}"
        shutil.rmtree(target)
    raise PrepareFailed(
        f"{requirement} could not be fetched from PyPI"
        + (
            f" ({said}); check the network or the proxy, or point PIP_INDEX_URL or PIP_FIND_LINKS "
            "at a mirror"
            if said
            else ": neither pip nor uv is here; install one of them"
        )
    )


def _installers(requirement: str, target: Path) -> list[tuple[str, list[str]]]:
    """The commands that can fetch it here, best first."""
    found: list[tuple[str, list[str]]] = []
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        options = ["--no-deps", "--only-binary=:all:", "--progress-bar=raw", "--dest", str(target)]
        found.append(("pip", [*pip, *options, requirement]))
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    if uv := uv or shutil.which("uv"):
        options = ["--no-deps", "--python", sys.executable, "--target", str(target)]
        found.append(("uv", [uv, "pip", "install", *options, requirement]))
    return found


def _run(command: list[str], fraction: Callable[[float], None]) -> tuple[bool, str]:
    """Run it; return whether it worked and the line with the reason if not."""
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if measured := _PROGRESS.search(line):
                fraction(int(measured[1]) / max(int(measured[2]), 1))
            elif line.strip():
                lines.append(line.strip())
    errors = [line for line in lines if "error" in line.lower()]
    return process.returncode == 0, (errors or lines or ["nothing"])[-1][:300]


def _unpack_wheels(target: Path) -> None:
    """pip leaves a wheel, which is a zip; zipfile keeps every name below `target`."""
    for wheel in target.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
        wheel.unlink()
