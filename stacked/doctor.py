"""What this machine has, and what would stop a server or make it slow.

It starts nothing and imports neither torch nor vLLM: everything is read from the operating system
and from the metadata of what is installed.
"""

from __future__ import annotations

import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from stacked.bases import KNOWN, bases_dir, is_base
from stacked.config import LOW_DISK_BYTES
from stacked.engine.machine import Machine, look
from stacked.engine.support import NEWEST, OLDEST, Build, find_build

GIB = 1024**3

Level = Literal["ok", "slow", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding, with advice. `bad`: a server cannot start; `slow`: it can."""

    name: str
    value: str
    level: Level = "ok"
    advice: str = ""


def examine(data_dir: Path, port: int = 8080) -> list[Finding]:
    """Check everything that a server on this machine depends on."""
    machine, build = look(), find_build()
    return [
        _python(),
        *_cpu(machine, build),
        _memory(machine),
        _gpu(machine, build),
        _vllm(build),
        _torch(build),
        *_libraries(build),
        _disk(data_dir),
        _bases(data_dir),
        _port(port),
    ]


def _python() -> Finding:
    return Finding("python", f"{platform.python_version()} ({sys.executable})")


def _cpu(machine: Machine, build: Build | None) -> Iterator[Finding]:
    yield Finding("cpu", f"{machine.cpu}, {machine.cores} cores")
    serves = build is not None and build.device == "cpu"
    flags = {
        "AVX2": "avx2" in machine.cpu_flags,
        "AVX-512": machine.has_avx512,
        "bfloat16": machine.has_fast_bfloat16,
    }
    value = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in flags.items())
    if platform.machine() not in {"x86_64", "AMD64"} or not serves:
        yield Finding("instructions", value)
    elif not flags["AVX2"]:
        advice = "vLLM's CPU build needs AVX2; use another machine, or a GPU"
        yield Finding("instructions", value, "bad", advice)
    elif not flags["AVX-512"]:
        advice = "without AVX-512, bfloat16 is about four times slower; leave dtype at float32"
        yield Finding("instructions", value, "slow", advice)
    else:
        yield Finding("instructions", value)
    if serves and machine.cores < 4:
        advice = "answers are as fast as the cores; keep max_tokens and the base small"
        yield Finding("cores", str(machine.cores), "slow", advice)


def _memory(machine: Machine) -> Finding:
    free = machine.available_bytes / GIB
    value = f"{free:.1f} GiB free of {machine.memory_bytes / GIB:.1f} GiB"
    if free < 3:
        return Finding("memory", value, "bad", "an engine needs 3 GiB even for the smallest base")
    return Finding("memory", value)


def _gpu(machine: Machine, build: Build | None) -> Finding:
    names = ", ".join(f"{gpu.name} ({gpu.memory_bytes / GIB:.0f} GiB)" for gpu in machine.gpus)
    if not names:
        if build is not None and build.device == "cuda":
            advice = "the CUDA build cannot run without one: STACKED_ENGINE=cpu make setup"
            return Finding("gpu", "none", "bad", advice)
        return Finding("gpu", "none; the engine runs on the CPU")
    if build is not None and build.device == "cpu":
        advice = "the CPU build does not use it: STACKED_ENGINE=cuda make setup"
        return Finding("gpu", names, "slow", advice)
    return Finding("gpu", names)


def _vllm(build: Build | None) -> Finding:
    span = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    if build is None:
        return Finding("vllm", "not installed", "bad", "run: make setup")
    value = f"{build.distribution} {build.version} ({build.device})"
    if not build.supported:
        return Finding("vllm", value, "bad", f"supported are {span}; run: make setup")
    return Finding("vllm", f"{value}; supported: {span}")


def _torch(build: Build | None) -> Finding:
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Finding("torch", "not installed", "bad", "run: make setup")
    if build is not None and build.device == "cpu" and "+cpu" not in version:
        if platform.system() != "Linux":
            return Finding("torch", version)
        advice = "the CPU build of vLLM needs the CPU build of torch; run: make clean setup"
        return Finding("torch", version, "bad", advice)
    return Finding("torch", version)


def _libraries(build: Build | None) -> Iterator[Finding]:
    if build is None or build.device != "cpu" or platform.system() != "Linux":
        return
    if find_library("numa") is None:
        advice = "vLLM's CPU build needs it: apt-get install libnuma1"
        yield Finding("libnuma", "missing", "bad", advice)
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        advice = "torch.compile needs one; without it set engine.enforce_eager: true"
        yield Finding("C++ compiler", "none", "slow", advice)


def _disk(data_dir: Path) -> Finding:
    there = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    free = shutil.disk_usage(there).free / GIB
    value = f"{free:.1f} GiB free for {data_dir}"
    if free < 1:
        advice = "free some space, or choose another place with STACKED_DATA_DIR"
        return Finding("disk", value, "bad", advice)
    if free < LOW_DISK_BYTES / GIB:
        return Finding("disk", value, "slow", "it is filling up; see: stacked gc --dry-run")
    return Finding("disk", value)


def _bases(data_dir: Path) -> Finding:
    there = sorted(path.name for path in bases_dir(data_dir).glob("[!.]*") if is_base(path))
    if there:
        return Finding("bases", ", ".join(there))
    return Finding("bases", f"none prepared; the demo's: stacked prepare {next(iter(KNOWN))}")


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        # As a server does: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            advice = "stop what is there, or serve elsewhere with --port"
            return Finding(f"port {port}", error.strerror or str(error), "bad", advice)
    return Finding(f"port {port}", "free")
