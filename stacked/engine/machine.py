"""What this machine has that an engine's plan depends on: memory, cores, CPU features, GPUs.

Read from the operating system and `nvidia-smi`; it must not import torch or vLLM.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GIB = 1024**3
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The environment variable with the GPUs that a process may use, in order."""

# The cores of this process at import; some of its threads may later leave one to an engine.
CORES: frozenset[int] = frozenset(
    os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
)


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory in bytes, cores as this process may use them, CPU flags as Linux names them."""

    cores: int
    memory_bytes: int
    available_bytes: int
    cpu: str
    cpu_flags: frozenset[str]
    gpus: tuple[Gpu, ...]

    @property
    def has_avx512(self) -> bool:
        return "avx512f" in self.cpu_flags

    @property
    def has_fast_bfloat16(self) -> bool:
        """Whether the CPU has instructions for matrix products in bfloat16."""
        return bool(self.cpu_flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def look() -> Machine:
    """Read this machine."""
    total, available = memory()
    cpu, flags = _cpu()
    return Machine(
        cores=len(CORES),
        memory_bytes=total,
        available_bytes=available,
        cpu=cpu,
        cpu_flags=flags,
        gpus=_gpus(),
    )


def memory() -> tuple[int, int]:
    """Bytes of memory that this process may use, and how many of them are free."""
    fields: dict[str, int] = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            fields[name] = int(rest.split()[0]) * 1024
    except OSError:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total
    limit = _cgroup_limit()
    total, free = fields["MemTotal"], fields.get("MemAvailable", fields["MemTotal"])
    return min(total, limit), min(free, limit)


def _cgroup_limit() -> int:
    """A container's own memory limit in bytes; without one, more than any machine has."""
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(place).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return 2**62


def _cpu() -> tuple[str, frozenset[str]]:
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            field, _, rest = line.partition(":")
            if field.strip() == "model name":
                name = rest.strip()
            elif field.strip() in {"flags", "Features"}:
                flags = frozenset(rest.split())
                break
    except OSError:
        pass
    return name, flags


def nvidia_smi(query: str) -> list[str]:
    """The lines that `nvidia-smi` prints for a query such as `name,memory.total`, one for a GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def _seen() -> list[str] | None:
    """The GPUs that this process may use, as the system names them; None if that is all."""
    text = os.environ.get(VISIBLE)
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def cards() -> int:
    """How many GPUs this process may use. Blocks for as long as `nvidia-smi` takes."""
    seen = _seen()
    return len(_gpus()) if seen is None else len(seen)


def visible(numbers: Sequence[int]) -> str:
    """What `VISIBLE` is for a process that sees these of this process's GPUs alone."""
    seen = _seen()
    return ",".join(str(at) if seen is None else seen[at] for at in numbers)


def _gpus() -> tuple[Gpu, ...]:
    rows = (line.rpartition(",") for line in nvidia_smi("name,memory.total") if "," in line)
    return tuple(Gpu(name.strip(), int(size) * 1024**2) for name, _, size in rows)
