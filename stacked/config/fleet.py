"""One of several servers that share their records and serve the same group: a fleet."""

from __future__ import annotations

import socket
from typing import Annotated, Literal

from pydantic import Field

from stacked.config.fields import Frozen
from stacked.fleet.replica import Timings
from stacked.fleet.shared import Mode

_TIMES = Timings()


class FleetConfig(Frozen):
    """What holds in a fleet; every replica of it has the same, but for `replica`."""

    mode: Mode = Mode.GLOBAL
    """`global`: no request is admitted to an old group after any was to the new one, anywhere.
    `session`: none of a client that sends back `model-generation`, and no request waits for it."""
    # Three reports fit into it. A shorter one leaves less room for a database that fails over.
    lease_seconds: float = Field(default=_TIMES.lease, ge=1, le=60)
    """How long a replica serves without the database, and others wait for one that was killed."""
    # A switch takes two looks of the slowest replica, 0.1 s; what takes longer than this is ended.
    hold_seconds: float = Field(default=_TIMES.hold, ge=0.1, le=60)
    """How long requests may wait for the other replicas at an update; then it is given up."""
    # A hundred adapters from an object store, or an engine that compiles.
    prepare_seconds: float = Field(default=_TIMES.prepare, ge=1, le=86400)
    """How long the slowest replica may take to load and verify a group."""
    on_partition: Literal["stop", "serve"] = "stop"
    """Without the database: `serve` goes on, and gives up what `mode` promises meanwhile."""
    replica: Annotated[str, Field(pattern=r"^[\w.-]{1,100}$")] | None = None
    """What this replica is called, which no other one is; None: the name of its host."""

    @property
    def replica_name(self) -> str:
        return self.replica or socket.gethostname()

    @property
    def timings(self) -> Timings:
        """Three reports in a lease; clocks may differ by a sixth of it."""
        lease = self.lease_seconds
        times = {"drift": lease / 6, "beat": lease / 3}
        return Timings(lease, hold=self.hold_seconds, prepare=self.prepare_seconds, **times)
