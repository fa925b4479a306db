"""Imported by the fork server alone: it ends at once when the server has.

Python would first take every module of vLLM's apart: seconds of a core, while its memory is held.
"""

import atexit
import os


def _end(fork_server: int) -> None:
    if os.getpid() == fork_server:  # and not a process that was forked from it
        os._exit(0)


atexit.register(_end, os.getpid())  # called last, as it is the first to be registered
