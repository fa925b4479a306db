"""The load leaves the core of whichever bound thread works, and comes back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from stacked.bench.cores import engine_core, off_engine_core

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
    code = "from stacked.bench.cores import engine_core; print(engine_core(0.05))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
