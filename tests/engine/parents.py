"""A process that starts a child from a thread that ends, as a server starts its engine.

Run as ``python -m tests.engine.parents MODE METHOD``, a start method of multiprocessing; both write
a line when they are ready. The child watches its parent at once (`watched`), not before it has died
(`late`), or never (`alone`).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from typing import Any

from stacked.engine.orphans import end_with_parent


def child(mode: str) -> None:
    say(f"child {os.getpid()}")
    if mode == "late":
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
    if mode != "alone":
        end_with_parent()
        end_with_parent()
        say(f"watches {sum('parent' in thread.name for thread in threading.enumerate())}")
    time.sleep(300)


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def main(mode: str, method: str) -> None:
    start: Any = multiprocessing.get_context(method)
    process = start.Process(target=child, args=(mode,))
    starter = threading.Thread(target=process.start)
    starter.start()
    starter.join()
    say("started")
    time.sleep(300)


if __name__ == "__main__":
    main(*sys.argv[1:])
