"""No process outlives the one that started it: a killed parent, a dead one, a thread that ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from stacked.engine.orphans import end_with_parent
from tests.processes import Process, alive, descendants, wait_until_gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")


@contextmanager
def family(
    mode: str, method: str, lines: int
) -> Iterator[tuple[subprocess.Popen[str], dict[Process, str]]]:
    """A parent and what it has started, after it has written so many lines."""
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.parents", mode, method],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    said = [parent.stdout.readline().split() for _ in range(lines)]
    started = descendants(parent.pid)
    child = next(int(line[1]) for line in said if line[0] == "child")
    assert child in [pid for pid, _ in started]
    try:
        yield parent, started
    finally:
        parent.kill()
        parent.communicate() if not alive(started) else parent.wait()
        for pid, _ in alive(started):
            os.kill(pid, signal.SIGKILL)
        parent.stdout.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_child_ends_when_its_parent_is_killed_and_not_when_the_starting_thread_ends(
    method: str,
) -> None:
    with family("watched", method, lines=4) as (parent, started):
        assert len(alive(started)) == len(started) > 0
        parent.kill()
        wait_until_gone(started)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_child_that_looks_only_after_its_parent_has_died_ends_too(method: str) -> None:
    with family("late", method, lines=2) as (parent, started):
        parent.kill()
        wait_until_gone(started)


def test_child_of_the_process_that_imports_vllm_need_not_watch_by_itself() -> None:
    """As the one that counts the requests of several engines, which calls no plugin."""
    with family("alone", "preload", lines=3) as (parent, started):
        assert len(alive(started)) == len(started) > 0
        parent.kill()
        wait_until_gone(started)


def test_child_that_does_not_watch_stays_so_that_these_tests_show_something() -> None:
    with (
        family("alone", "spawn", lines=3) as (parent, started),
        family("watched", "spawn", lines=4) as (other, watched),
    ):
        child = {process: name for process, name in started.items() if "spawn_main" in name}
        for each in (parent, other):
            each.kill()
            each.wait()
        wait_until_gone(watched)
        assert len(alive(child)) == len(child) == 1


def test_a_process_that_nobody_started_watches_nobody() -> None:
    before = threading.active_count()
    end_with_parent()
    assert threading.active_count() == before


@pytest.mark.parametrize("group", ["vllm.platform_plugins", "vllm.general_plugins"])
def test_vllm_finds_the_plugin_in_each_of_its_processes(group: str) -> None:
    (found,) = (each for each in entry_points(group=group) if each.name == "stacked_parent")
    assert found.load() is end_with_parent


def test_importing_it_imports_neither_vllm_nor_torch() -> None:
    code = "import sys, stacked.engine.orphans; print({'vllm', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
