"""How an engine's processes ended, whether for memory, and that a stopped one can be ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from stacked.engine import processes
from stacked.engine.processes import Ended, Processes, oom_kills
from tests.processes import descendants, wait_until_gone
from tests.waiting import until

CONTEXT = multiprocessing.get_context("spawn")


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _with_child() -> None:
    child = CONTEXT.Process(target=_sleep, args=(600,))
    child.start()
    child.join()


def test_exit_code_and_signal_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [os._exit, signal.raise_signal]
    started = [CONTEXT.Process(target=codes[at], args=(9,)) for at in range(2)]
    for each in started:
        each.start()
        each.join()
    assert Processes(started[:1]).ended() == Ended(9)
    assert Processes(started[1:]).ended() == Ended(-9)
    assert Processes([]).ended() == Ended()
    assert Processes(started).ended() == Ended(9, who=started[0].name)
    counts = iter([3, 4])
    monkeypatch.setattr(processes, "oom_kills", lambda: next(counts))
    assert Processes(started[1:]).ended() == Ended(-9, oom=True)


def test_of_several_engines_the_first_that_ended_is_told() -> None:
    """The others are ended for it, and the process that counts requests is none of them."""
    started = [CONTEXT.Process(target=_sleep, args=(600,)) for _ in range(3)]
    names = ["VLLM_DP_Coordinator", "EngineCore_DP0", "EngineCore_DP10"]
    for each, name in zip(started, names, strict=True):
        each.name = name
    for each in started:
        each.start()
    ours = Processes(started)
    try:
        started[0].kill()
        started[0].join()
        assert (ours.first, ours.rank) == (None, None)
        started[2].kill()
        until(lambda: ours.rank == 10)
    finally:
        ours.kill()
    for each in started:
        each.join()
    assert ours.ended() == Ended(-9, who=names[2])


def test_of_several_engines_the_silent_one_is_told() -> None:
    started = [CONTEXT.Process(target=_sleep, args=(600,)) for _ in range(2)]
    for rank, each in enumerate(started):
        each.name = f"EngineCore_DP{rank}"
        each.start()
    ours = Processes(started)
    ours.kill({1})
    for each in started:
        each.join()
    assert ours.rank == 1
    assert ours.ended() == Ended(-9, who="EngineCore_DP1")


def test_what_is_said_of_an_end() -> None:
    assert str(Ended(1)) == "it ended with exit code 1"
    assert str(Ended(-9)) == "it was killed by signal 9 (SIGKILL)"
    assert str(Ended(-9, oom=True)) == "it was killed by signal 9 (SIGKILL, probably out of memory)"
    assert str(Ended(-9, who="EngineCore_DP1")) == "EngineCore_DP1 was killed by signal 9 (SIGKILL)"
    assert str(Ended(-11, oom=False)) == "it was killed by signal 11 (SIGSEGV)"


def test_a_stopped_process_is_ended_with_its_children() -> None:
    parent = CONTEXT.Process(target=_with_child)
    parent.start()
    assert parent.pid is not None
    ours = Processes([parent])
    try:
        while len(started := descendants(parent.pid)) < 1:
            assert parent.is_alive()
        for pid in (parent.pid, *(number for number, _ in started)):
            os.kill(pid, signal.SIGSTOP)
    finally:
        ours.kill()
    parent.join()
    wait_until_gone(started)
    ours.kill()  # once more does nothing
    assert ours.ended() == Ended(-9)


@pytest.mark.parametrize(
    ("group", "file", "text"),
    [
        ("0::/a/b\n", "a/b/memory.events", "low 0\noom 2\noom_kill 2\n"),
        ("0::/\n", "memory.events", "oom_kill 2\n"),
        ("0::/outside/of/it\n", "memory.events", "oom_kill 2\n"),
        ("3:cpu:/x\n7:memory:/a\n", "memory/a/memory.oom_control", "under_oom 0\noom_kill 2\n"),
    ],
)
def test_kills_for_memory_are_counted_by_the_control_group(
    tmp_path: Path, group: str, file: str, text: str
) -> None:
    assert oom_kills(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(group)
    assert oom_kills(tmp_path) is None
    counter = tmp_path / "sys/fs/cgroup" / file
    counter.parent.mkdir(parents=True)
    counter.write_text("not a counter\n")
    assert oom_kills(tmp_path) is None
    counter.write_text(text)
    assert oom_kills(tmp_path) == 2
