"""Threads out of an engine's way: a core is taken once, and left by whoever is told to.

Each case runs in processes of its own, as what it changes lasts as long as the process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("torch")

CORES = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="one core cannot be shared out")

TAKE = f"""
import os, sys, threading, torch
from stacked.engine import cpu_affinity
torch.set_num_threads(1)
idle = threading.Event()
other = threading.Thread(target=idle.wait)
other.start()
print(cpu_affinity.take_core({CORES}), *sorted(os.sched_getaffinity(0)), flush=True)
print(*sorted(os.sched_getaffinity(other.native_id)), flush=True)
sys.stdin.readline()
idle.set()
"""


@contextmanager
def process(code: str, tmp: Path) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp), "OMP_NUM_THREADS": "1"},
    )
    try:
        yield child
    finally:
        child.communicate("\n", timeout=30)


def told(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_one_engine_takes_the_last_core_and_a_second_one_none(tmp_path: Path) -> None:
    last, rest = str(CORES[-1]), " ".join(map(str, CORES[:-1]))
    everywhere = " ".join(map(str, CORES))
    with process(TAKE, tmp_path) as first:
        assert told(first) == f"{last} {last}"
        assert told(first) == rest  # its other threads leave the core
        with process(TAKE, tmp_path) as second:
            assert told(second) == f"None {everywhere}"
            assert told(second) == everywhere
    with process(TAKE, tmp_path) as third:  # the core went back with the process
        assert told(third) == f"{last} {last}"


@pytest.mark.parametrize("change", ["set_num_threads(2)", "set_num_threads(1)"])
def test_a_core_is_taken_by_loops_of_one_thread_only(change: str, tmp_path: Path) -> None:
    code = TAKE.replace("set_num_threads(1)", change)
    with process(code, tmp_path) as child:
        assert told(child).startswith("None" if "2" in change else str(CORES[-1]))


def test_a_core_that_is_given_back_is_used_and_taken_by_others_again(tmp_path: Path) -> None:
    everywhere = " ".join(map(str, CORES))
    code = TAKE.replace(
        "sys.stdin",
        f"""cpu_affinity.give_core({CORES})
print(*sorted(os.sched_getaffinity(0)), *sorted(os.sched_getaffinity(other.native_id)), flush=True)
sys.stdin""",
    )
    with process(code, tmp_path) as first:
        assert [told(first) for _ in range(3)][-1] == f"{everywhere} {everywhere}"
        with process(TAKE, tmp_path) as second:
            assert told(second) == f"{CORES[-1]} {CORES[-1]}"


def test_threads_that_are_started_later_stay_on_the_cores_too(tmp_path: Path) -> None:
    code = f"""
import os, threading
from stacked.engine import cpu_affinity
cpu_affinity.use_cores({CORES[:-1]})
seen = []
thread = threading.Thread(target=lambda: seen.append(sorted(os.sched_getaffinity(0))))
thread.start(); thread.join()
print(*seen[0])
"""
    with process(code, tmp_path) as child:
        assert told(child) == " ".join(map(str, CORES[:-1]))
