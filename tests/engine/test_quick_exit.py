"""The fork server's end: nothing is taken apart in it, and what was forked from it ends as ever."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import os, sys
import stacked.engine.quick_exit

class Large:
    def __del__(self):
        os.write(1, b"taken apart")

large = Large()
child = os.fork()
if not child:
    sys.exit(3)
_, status = os.waitpid(child, 0)
os.write(1, b"%d " % os.waitstatus_to_exitcode(status))
"""


def test_it_ends_at_once_and_its_children_as_ever() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"taken apart3 ", b"")
