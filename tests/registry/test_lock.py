"""One process per data directory, and the lock of a process that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stacked.errors import DataDirInUse, RegistryUnusable
from stacked.registry import lock_data_dir

HOLDER = """
import os, sys, time
from pathlib import Path
from stacked.registry.lock import lock_data_dir
lock = lock_data_dir(Path(sys.argv[1]))
if os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_lock_is_taken_once_and_is_free_after_its_release(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "data"
    with lock_data_dir(directory):
        with pytest.raises(DataDirInUse, match=f"pid {os.getpid()}"):
            lock_data_dir(directory)
        with lock_data_dir(tmp_path):
            pass
    with lock_data_dir(directory) as lock:
        lock.close()
        lock.close()
        lock_data_dir(directory).close()


def test_lock_of_a_killed_process_is_free_although_its_child_lives(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(DataDirInUse, match=rf"pid {holder.pid}\).*another data directory"):
            lock_data_dir(tmp_path)
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it lives
        with lock_data_dir(tmp_path):
            assert (tmp_path / "server.lock").read_text() == f"{os.getpid()}\n"
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()
        holder.wait()


def test_directory_that_cannot_be_locked_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RegistryUnusable, match="choose another"):
        lock_data_dir(tmp_path / "file")
