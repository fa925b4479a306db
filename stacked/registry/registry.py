"""The durable records: one file or schema, and a repository for every kind of record in it."""

from __future__ import annotations

from pathlib import Path

from stacked.registry.artifacts import ArtifactRepository
from stacked.registry.database import Database
from stacked.registry.deployments import DeploymentRepository
from stacked.registry.groups import GroupRepository
from stacked.registry.models import ModelRepository
from stacked.registry.outcomes import OutcomeRepository
from stacked.registry.postgresql import Shared
from stacked.registry.records import Recovered
from stacked.registry.recovery import recover
from stacked.registry.retention import Retention
from stacked.registry.retry_tokens import RetryTokenRepository
from stacked.registry.usage import UsageRepository
from stacked.registry.versions import HistoryRepository, VersionSetRepository
from stacked.registry.work_requests import WorkRequestRepository


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

    def claim(self) -> None:
        """Be the only process that writes to a schema, as `lock_data_dir` does for a file.

        Raises DataDirInUse; so do later writes, should another process have claimed it while this
        one had lost the server.
        """
        self._database.claim()

    def recover(self) -> Recovered:
        """Settle what a killed process left in progress; call it once, before anything else.

        No other process may be at work.
        """
        with self._database.write() as connection:
            return recover(connection)

    def close(self) -> None:
        """Idempotent."""
        self._database.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
