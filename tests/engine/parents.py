"""A process that starts a child from a thread that ends, as a server starts its engine.

Run as ``python -m tests.engine.parents MODE METHOD``, a start method of multiprocessing or
`preload`, with which vLLM's processes are started; both write a line when they are ready. The child
watches its parent at once (`watched`), not before it has died (`late`), or never (`alone`). Except
for `late`, it writes another line once the thread that started it is gone: what the kernel sends at
a thread's end has come before.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from stacked.engine.orphans import end_with_parent
from stacked.engine.preload import _Context


def child(mode: str, starter_is_gone: Any) -> None:
    say(f"child {os.getpid()}")
    if mode == "late":
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
    if mode != "alone":
        end_with_parent()
        end_with_parent()
        say(f"watches {sum('parent' in thread.name for thread in threading.enumerate())}")
    if mode != "late":
        starter_is_gone.recv()
        say("answers")
    time.sleep(300)


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def main(mode: str, method: str) -> None:
    start: Any = _Context() if method == "preload" else multiprocessing.get_context(method)
    receiver, sender = start.Pipe(duplex=False)
    process = start.Process(target=child, args=(mode, receiver))
    starter = threading.Thread(target=process.start)
    starter.start()
    starter.join()
    while Path(f"/proc/self/task/{starter.native_id}").exists():
        time.sleep(0.001)
    say("started")
    sender.send(True)
    time.sleep(300)


if __name__ == "__main__":
    main(*sys.argv[1:])
