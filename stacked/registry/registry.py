"""The durable records: one file or schema, and a repository for every kind of record in it."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path

from sqlalchemy import Connection

from stacked.fleet.shared import Fleet
from stacked.registry.artifacts import ArtifactRepository
from stacked.registry.database import Database
from stacked.registry.deployments import DeploymentRepository
from stacked.registry.fleets import last_committed, last_fleet, reporting
from stacked.registry.groups import GroupRepository
from stacked.registry.models import ModelRepository
from stacked.registry.outcomes import OutcomeRepository
from stacked.registry.postgresql import Shared
from stacked.registry.records import Recovered
from stacked.registry.recovery import at_work, recover
from stacked.registry.retention import Retention
from stacked.registry.retry_tokens import RetryTokenRepository
from stacked.registry.usage import UsageRepository
from stacked.registry.versions import HistoryRepository, VersionSetRepository
from stacked.registry.work_requests import WorkRequestRepository

_LOOK_SECONDS = 0.2


class Registry:
    """The records in a SQLite file, or in a schema of PostgreSQL. One method of a repository is one
    transaction.

    Once a method has returned, its effect survives a kill. Every method blocks, and may be called
    from any thread. Open it once per process; only the holder of `lock_data_dir` may write to a
    file. All methods raise RegistryUnusable; those that name a record raise RecordAbsent; those
    that list, PageInvalid.
    """

    def __init__(self, where: Path | Shared, *, busy_seconds: float = 10.0) -> None:
        """Open it, creating or migrating it if needed. `recover` is not called."""
        self._database = Database(where, busy_seconds)
        self._lease = 0.0
        self.models = ModelRepository(self._database)
        self.artifacts = ArtifactRepository(self._database)
        self.version_sets = VersionSetRepository(self._database)
        self.groups = GroupRepository(self._database)
        self.histories = HistoryRepository(self._database)
        self.deployments = DeploymentRepository(self._database)
        self.work_requests = WorkRequestRepository(self._database)
        self.retry_tokens = RetryTokenRepository(self._database)
        self.usage = UsageRepository(self._database)
        self.outcomes = OutcomeRepository(self._database)
        self.retention = Retention(self._database)

    def claim(self, *, shared: bool = False, lease: float = 0.0) -> None:
        """Be the only process that writes to a schema, as `lock_data_dir` does for a file; or one
        of those that share it, whose members run for a lease after each report.

        Raises DataDirInUse; so do later writes, should another have claimed it while this process
        had lost the server, and not shared it with this one.
        """
        self._database.claim(shared=shared)
        self._lease = lease

    @property
    def owner(self) -> int:
        """The number of the claim, which those that share the records have in common."""
        return self._database.owner

    @property
    def process(self) -> int:
        """The number of this process among all that have claimed them."""
        return self._database.process

    @property
    def alone(self) -> bool:
        """Whether no other process that runs has claimed them."""
        with self._database.read() as connection:
            return self._running(connection) <= {self._database.process}

    def last_fleet(self) -> Fleet | None:
        """What the servers had in common that shared the records last."""
        with self._database.read() as connection:
            return last_fleet(connection, self._database.schema)

    def recover(self, spared: Collection[str] = ()) -> Recovered:
        """Settle what processes that ended have left in progress, at a start before anything else.

        What processes that run work on stays, and work requests that are `spared`. One that was
        killed within a lease, and one that has lost its session, are waited for.
        """
        until = time.monotonic() + self._lease
        while True:
            with self._database.write() as connection:
                running = self._running(connection)
                if running == self._database.running(connection) or time.monotonic() >= until:
                    alone = running <= {self._database.process}
                    committed = last_committed(connection, self._database.schema)
                    return recover(connection, running, spared, committed, alone=alone)
            time.sleep(_LOOK_SECONDS)

    def _running(self, connection: Connection) -> frozenset[int]:
        """The processes that run: each has a session here, or lost it and reports to its fleet."""
        held = self._database.running(connection)
        return held | reporting(connection, self._database.schema, self._lease)

    def turn(self) -> AbstractContextManager[None]:
        """Within it, one at a time of the processes that share the records. For a few seconds."""
        return self._database.turn()

    def recover_others(self, before: Collection[int]) -> frozenset[int]:
        """Settle what processes have left that were gone `before` too, while this one works on.

        Returns those that are gone now. One that runs, and is no member now, may seem gone until
        its next write, such as this one, after the server has restarted.
        """
        with self._database.write() as connection:
            running = self._running(connection) | {self._database.process}
            gone = at_work(connection) - running
            schema = self._database.schema
            fleet, committed = last_fleet(connection, schema), last_committed(connection, schema)
            spared = {fleet.proposal} if fleet is not None else ()
            stays = running | (gone - frozenset(before))
            recover(connection, stays, spared, committed, alone=False)
            return gone

    def close(self) -> None:
        """Idempotent."""
        self._database.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
