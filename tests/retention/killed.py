"""Processes that collect until they are killed: `python -m … DIRECTORY POINTS`.

DIRECTORY has data directories `0` to POINTS. A process for each of them is killed at the file
operation or commit that is its share of all there are; the one for `0` ends by itself, and counts.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from tests.retention.ground import Ground

COUNTED = {"os.rename", "os.remove", "os.rmdir", "os.chmod", "os.utime", "os.mkdir"}


def collect(data_dir: Path, kill_at: int) -> int:
    """Collect all there is; how many operations that took."""
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(name: str, arguments: tuple[Any, ...]) -> None:
        if name in COUNTED:
            count()

    event.listen(Engine, "commit", count)
    ground = Ground(data_dir)
    collector = ground.collector()
    sys.addaudithook(audit)
    while collector.run(most=3).unfinished:
        pass
    return done


def main(place: Path, points: int) -> None:
    total = place / "total"
    for point in range(points + 1):
        kill_at = max(1, int(total.read_text()) * point // (points + 1)) if point else 0
        if os.fork() == 0:
            total.write_text(str(collect(place / str(point), kill_at)), encoding="utf-8")
            os._exit(0)
        _, status = os.wait()
        assert os.WIFSIGNALED(status) == bool(point), (point, status)
        print(kill_at, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
