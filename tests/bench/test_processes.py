"""Memory of a process and of what it started, and the page cache, as Linux tells them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stacked.bench.processes import (
    descendants,
    engine_core,
    forget_files,
    forget_peaks,
    gpu_bytes,
    off_engine_core,
    peak_bytes,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

_HOLDS = "kept = bytearray(200_000_000); print('ready', flush=True); input()"


@linux
def test_peak_counts_what_a_child_holds() -> None:
    before = peak_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"ready\n"
        assert child.pid in descendants(os.getpid())
        assert peak_bytes(child.pid) > 200_000_000
        assert peak_bytes() > before + 150_000_000
        child.stdin.close()
    assert child.pid not in descendants(os.getpid())


@linux
def test_peak_begins_anew() -> None:
    kept = bytearray(300_000_000)
    high = peak_bytes()
    del kept
    forget_peaks()
    assert peak_bytes() < high - 200_000_000


@linux
def test_file_can_be_pushed_out_of_the_page_cache_and_is_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights" * 1000)
    assert forget_files([tmp_path]) == [path]
    assert path.read_bytes() == b"weights" * 1000


def test_machine_without_a_gpu_has_none_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu_bytes() == 0


def test_gpus_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 1024\necho 2048\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpu_bytes() == 3 * 1024**3


CORES = sorted(os.sched_getaffinity(0))
BUSY = "import os; os.sched_setaffinity(0, {%d}); print(flush=True)\nwhile True: pass"
IDLE = "import os, time; os.sched_setaffinity(0, {%d}); print(flush=True); time.sleep(60)"


@pytest.mark.skipif(len(CORES) < 2, reason="one core cannot be shared out")
def test_load_leaves_the_core_of_the_bound_thread_that_works() -> None:
    busy, idle = (
        subprocess.Popen([sys.executable, "-c", code % core], stdout=subprocess.PIPE)
        for code, core in ((BUSY, CORES[-1]), (IDLE, CORES[0]))
    )
    try:
        for child in (busy, idle):
            assert child.stdout is not None
            child.stdout.readline()
        assert engine_core(0.3) == CORES[-1]
        seen: list[list[int]] = []
        with off_engine_core(0.3):
            thread = threading.Thread(target=lambda: seen.append(sorted(os.sched_getaffinity(0))))
            thread.start()
            thread.join()
        assert seen == [CORES[:-1]]
        assert sorted(os.sched_getaffinity(0)) == CORES
    finally:
        for child in (busy, idle):
            child.kill()
            child.communicate()


def test_load_stays_where_no_thread_is_bound() -> None:
    # In a process without children: this one may have servers of other tests.
    code = "from stacked.bench.processes import engine_core; print(engine_core(0.05))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
