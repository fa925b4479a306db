"""The process of a replica: the server as everywhere, on sockets that its actor has bound.

It ends when its actor does, however that ends: a GPU that it kept would be missing to the next one.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from stacked.api.process import Logged
from stacked.api.server import run
from stacked.config import ControlConfig, Listener, RayConfig, load_server
from stacked.errors import StackedError
from stacked.keys import keys_dir


class Given(NamedTuple):
    """What its actor tells it, as JSON in the one argument."""

    config: str
    data_dir: str
    """Of this node; `directory` is this replica's own."""
    directory: str
    name: str
    sockets: tuple[int, int]
    """File descriptors: for requests, and for the metrics."""
    lock: int


class FromActor:
    """What its actor says as long as it lives, in lines: the file's `ray`, as it is deployed."""

    def __init__(self) -> None:
        self.ray: RayConfig | None = None

    def follow(self) -> None:
        """End this process when the other end of the pipe is closed."""
        # Not `sys.stdin`, whose lock a thread would hold while the interpreter ends.
        with open(0, "rb", buffering=0) as lines:
            for line in lines:
                self.ray = RayConfig.model_validate_json(line)
        os._exit(1)


def main() -> int:
    """The process's exit code; an error is printed in two lines, its code and its sentence."""
    actor = FromActor()
    threading.Thread(target=actor.follow, daemon=True).start()
    given = Given(**json.loads(sys.argv[1]))
    sockets = [socket.socket(fileno=fd) for fd in given.sockets]
    for fd in (*given.sockets, given.lock):
        os.set_inheritable(fd, False)  # what a model's process had would stay open with it
    try:
        config = configured(load_server(Path(given.config)), given, sockets[1].getsockname())
        return run(
            config,
            data_dir=Path(given.directory),
            progress=Logged(),
            sockets=sockets,
            ray=lambda: actor.ray or config.ray,
        )
    except StackedError as error:
        print(f"{error.code}\n{error}", file=sys.stderr)
        return 1


def configured(config: ControlConfig, given: Given, metrics: tuple[str, int]) -> ControlConfig:
    """The file's settings for this replica.

    Ray Serve has the file's address and certificate; credentials are those of the node's data
    directory, because all replicas must know the same.
    """
    server = config.server
    directory = server.auth.directory or str(keys_dir(Path(given.data_dir)))
    changed = {
        "metrics": Listener(host=metrics[0], port=metrics[1]),
        "health_port": None,
        "tls": None,
        "auth": server.auth.model_copy(update={"directory": directory}),
    }
    fleet = config.fleet and config.fleet.model_copy(update={"replica": given.name})
    return config.model_copy(update={"server": server.model_copy(update=changed), "fleet": fleet})


if __name__ == "__main__":
    sys.exit(main())
