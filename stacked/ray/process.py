"""A server as the child of a replica's actor: its directory, its sockets, its end."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import IO, NamedTuple

from stacked.bases import bases_dir
from stacked.errors import EngineStartFailed, StoreUnusable
from stacked.ray.child import Given

# More than there are cards in a machine.
_MOST_ON_A_NODE = 64
_LAST_LINES = 20


class Place(NamedTuple):
    """A directory that one replica has, and the lock that says so."""

    number: int
    directory: Path
    lock: int

    @classmethod
    def take(cls, data_dir: Path) -> Place:
        """The first that nobody has: what a replica fetched, the next one here finds.

        The lock's file descriptor is for the server too, so that the place is free when the last of
        the two has ended. Raises StoreUnusable.
        """
        for number in range(_MOST_ON_A_NODE):
            directory = data_dir / "replicas" / str(number)
            directory.mkdir(parents=True, exist_ok=True)
            lock = os.open(directory.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            bases = directory / "bases"
            if not bases.is_symlink():
                bases.symlink_to(bases_dir(data_dir).absolute())
            return cls(number, directory, lock)
        raise StoreUnusable(f"{data_dir}/replicas: all {_MOST_ON_A_NODE} places are taken")


class Server:
    """A server that has been started. `metrics_port` 0: any that is free."""

    def __init__(self, config: str, data_dir: Path, name: str, metrics: tuple[str, int]) -> None:
        self._place = place = Place.take(data_dir)
        port = metrics[1] and metrics[1] + place.number
        sockets = [_bound("127.0.0.1", 0), _bound(metrics[0], port)]
        self.address, self.metrics = (sock.getsockname()[:2] for sock in sockets)
        fds = [sock.fileno() for sock in sockets]
        own = str(place.directory)
        given = Given(config, str(data_dir), own, name, (fds[0], fds[1]), place.lock)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stacked.ray.child", json.dumps(given._asdict())],
            stdin=subprocess.PIPE,  # which ends with this process
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(*fds, place.lock),
            env=_environment(),
        )
        os.close(place.lock)
        for sock in sockets:
            sock.close()
        self._serves = False
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        assert self._process.stderr is not None
        self._following = threading.Thread(
            target=self._follow, args=(self._process.stderr,), daemon=True
        )
        self._following.start()

    def tell(self, settings: str) -> None:
        """Give it a line; see `child.FromActor`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{settings}\n".encode())
        self._process.stdin.flush()

    def begin(self) -> None:
        """From now on, end this process if the server ends: what refuses at once is free, and would
        get every request until Ray's next look."""
        self._serves = True
        self.check()

    def check(self) -> None:
        """Raises EngineStartFailed if it has ended."""
        if (code := self._process.poll()) is not None:
            self._following.join(1)
            said = "\n".join(self._last) or "it said nothing"
            raise EngineStartFailed(
                f"the server of this replica ended with {code}: {said}\n"
                f"Its logs: {self._place.directory / 'logs'}"
            )

    async def stop(self, seconds: float) -> None:
        """Have it finish its requests and end, within `seconds`."""
        self._serves = False
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def _follow(self, lines: IO[bytes]) -> None:
        """Pass on what it says to Ray's log of this replica."""
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip()
            self._last.append(text)
            print(text, file=sys.stderr, flush=True)
        code = self._process.wait()
        if self._serves:
            print(f"the server of this replica ended with {code}", file=sys.stderr, flush=True)
            os._exit(1)


def _environment() -> dict[str, str]:
    """Without the number of threads that Ray has set for an actor: an engine chooses its own."""
    return {name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"}


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.setblocking(False)
    return sock
