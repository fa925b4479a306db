"""How much memory processes have taken: a process with its descendants, and GPUs.

Read from Linux's /proc and `nvidia-smi`; elsewhere 0, which tables show as unknown.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path


def descendants(process: int) -> list[int]:
    """The process and its running descendants."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in parentheses may hold anything; the parent is the second word after it.
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(place.name))
    found = [process]
    for each in found:  # grows during the loop
        found += children.get(each, [])
    return found


def forget_peaks(process: int | None = None) -> None:
    """Reset the peaks of a process and its descendants to their current sizes."""
    for each in descendants(process or os.getpid()):
        with contextlib.suppress(OSError):
            Path(f"/proc/{each}/clear_refs").write_text("5")


def peak_bytes(process: int | None = None) -> int:
    """The sum of the largest resident sizes of a process and its descendants, in bytes.

    Memory that they share counts for each of them.
    """
    return sum(_peak(each) for each in descendants(process or os.getpid()))


def gpu_bytes() -> int:
    """What is taken on the GPUs that this process may see, by anyone, in bytes."""
    if shutil.which("nvidia-smi") is None:
        return 0
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(int(line) * 1024**2 for line in done.stdout.split() if line.isdigit())


def forget_files(directories: Iterable[Path]) -> list[Path]:
    """Evict the directories' files from the page cache, as far as their owner may; the files.

    Pages that a process has mapped stay, and so do libraries: dropping the whole cache needs rights
    that a benchmark should not have.
    """
    files = [file for path in directories for file in sorted(path.iterdir()) if file.is_file()]
    for path in files if hasattr(os, "posix_fadvise") else ():
        with path.open("rb") as file, contextlib.suppress(OSError):
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return files


def _peak(process: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
