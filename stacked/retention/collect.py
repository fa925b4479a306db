"""One round of collecting: records first, then the content that only they named, then leftovers.

Whatever instant it is killed at, a record never names content that is gone, and the next round goes
on with what is left.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from stacked.bases import bases_dir, clear_unfinished
from stacked.config import RetentionConfig, StorageConfig
from stacked.core import Digest
from stacked.errors import RegistryUnusable
from stacked.log_files import CATEGORIES, logs_dir, older
from stacked.registry import Registry, lock_data_dir
from stacked.registry.places import FILE, database_of, place_of
from stacked.registry.retention import Sweep, named_in
from stacked.registry.retry_tokens import LIFETIME
from stacked.retention.plan import (
    ContentPlan,
    Needs,
    Reason,
    oldest,
    plan_contents,
    plan_versions,
)
from stacked.store import AdapterStore, ArtifactFiles, BaseStore, ModelStore
from stacked.store.folders import FolderStore
from stacked.store.shelf import Stored
from stacked.store.verified import forget_verified

# A round ends after this many removals or seconds, so that no lock is held for long; another one
# follows.
MOST = 200
SECONDS = 5.0

_PART_SECONDS = 3600.0
"""A temporary file older than this belongs to a writer that has died."""
_CONTENTS = {"adapter": "adapters", "base": "bases", "model": "folders of models"}
_NOUNS = {
    "deployments": "deleted records",
    "model_groups": "deleted records",
    "models": "deleted records",
    "version_histories": "deleted records",
    "model_version_sets": "deleted records",
    "work_requests": "work requests",
    "retry_tokens": "retry tokens",
}


@dataclass(frozen=True, slots=True)
class Line:
    """How much of one kind is removed, or stays, for one reason."""

    kind: str
    reason: str
    freed: bool
    count: int = 0
    bytes: int = 0


@dataclass
class Report:
    """What a round did, or would do; `unfinished` if more is left than one round removes."""

    dry_run: bool = False
    unfinished: bool = False
    stored_bytes: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    _lines: dict[tuple[str, str], Line] = field(default_factory=dict)

    def add(self, kind: str, reason: str, *, freed: bool, count: int = 1, bytes: int = 0) -> None:
        if count:
            line = self._lines.get((kind, reason)) or Line(kind, reason, freed)
            self._lines[kind, reason] = replace(
                line, count=line.count + count, bytes=line.bytes + bytes
            )

    @property
    def lines(self) -> list[Line]:
        """What is removed, then what stays."""
        return sorted(self._lines.values(), key=lambda line: (not line.freed, line.kind))

    @property
    def freed(self) -> int:
        return sum(line.count for line in self.lines if line.freed)

    def to_json(self) -> dict[str, Any]:
        """As `stacked gc --json` prints it."""
        return {
            "dryRun": self.dry_run,
            "unfinished": self.unfinished,
            "freedBytes": sum(line.bytes for line in self.lines if line.freed),
            "lines": [asdict(line) for line in self.lines],
            "notes": self.notes,
        }


class _Everything:
    """Where names of content come from if records cannot be read."""

    def __contains__(self, digest: object) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Records:
    """A registry whose records are removed; its process holds the lock."""

    path: Path
    registry: Registry
    tidy_files: Callable[[], int]
    """Removes artifact files that no record names; returns how many."""


class Collector:
    """Removes from a data directory what is no longer needed. Blocks; one round at a time.

    `in_use` gives the digests that running engines need, whenever it is called.
    """

    def __init__(
        self,
        settings: RetentionConfig,
        data_dir: Path,
        store: AdapterStore,
        records: Sequence[Records],
        in_use: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._store = store
        self._stores: Mapping[str, AdapterStore | FolderStore] = {
            "adapter": store,
            "base": BaseStore(store.root),
            "model": ModelStore(store.root),
        }
        self._records = records
        self._in_use = in_use

    def run(self, *, dry_run: bool = False, most: int = MOST, seconds: float = SECONDS) -> Report:
        """One round of bounded length. Raises StoreUnusable, RegistryUnusable."""
        report = Report(dry_run)
        most = sys.maxsize if dry_run else most
        until = time.monotonic() + seconds
        # In this order, whatever is added meanwhile is found in use, pinned, or named by a record.
        contents = [each for store in self._stores.values() for each in store.contents()]
        pinned = self._store.pins()
        needs = self._sweep(report, {each.digest for each in contents}, pinned, most)
        unused = self._settings.unused_content.total_seconds()
        plan = plan_contents(contents, needs, now_ns=time.time_ns(), unused_seconds=unused)
        self._remove(plan, report, most, until)
        self._leftovers(report)
        return report

    # -- records ------------------------------------------------------------------------------

    def _sweep(
        self, report: Report, there: set[Digest], pinned: frozenset[Digest], most: int
    ) -> Needs:
        named: set[Digest] = set()
        released: set[Digest] = set()
        for each in self._records:
            with each.registry.retention.sweep(dry_run=report.dry_run) as sweep:
                self._drop_versions(sweep, report, most)
                named |= sweep.named()
                released |= sweep.released()
                # Their records allow removing the content at once, so they are removed after it.
                self._forget(sweep, report, most, needed=(released - named) & there)
            if not report.dry_run:
                unnamed = each.tidy_files()
                report.add("artifact files", "no record names them", freed=True, count=unnamed)
        try:
            elsewhere: Container[str] = self._named_elsewhere()
        except RegistryUnusable as error:
            report.notes.append(f"no content is removed: {error}")
            elsewhere = _Everything()
        return Needs(self._in_use(), pinned, named, elsewhere, released)

    def _drop_versions(self, sweep: Sweep, report: Report, most: int) -> None:
        keep = self._settings.group_versions
        versions = sweep.versions()
        dropped = plan_versions(versions, keep)
        for version in dropped[:most]:
            gone = sweep.drop(version.id, self._may_go)
            report.add("group versions", f"older than the {keep} newest of its line", freed=True)
            report.add("models", "with the last group version of them", freed=True, count=len(gone))
        report.unfinished |= len(dropped) > most
        going = {version.id for version in dropped}
        for version in versions:
            if version.id not in going:
                reason = version.needed or f"among the {keep} newest of its line"
                report.add("group versions", reason, freed=False)

    def _may_go(self, digest: Digest, since: datetime) -> bool:
        used = [store.used_ns(digest) or 0 for store in self._stores.values()]
        return 0 < max(used) <= since.timestamp() * 1e9 and digest not in self._in_use()

    def _forget(self, sweep: Sweep, report: Report, most: int, needed: set[Digest]) -> None:
        now = datetime.now(UTC)
        records, work = now - self._settings.deleted_records, now - self._settings.work_requests
        forgotten = sweep.forget(records, work, now - LIFETIME, most=most, needed=needed)
        for table, count in Counter(forgotten).items():
            report.add(_NOUNS[table], "past their retention", freed=True, count=count)
            report.unfinished |= count >= most

    def _named_elsewhere(self) -> frozenset[Digest]:
        """Content named by other registries of this data directory, or of the same databases.

        Raises RegistryUnusable.
        """
        own = {each.path.parent for each in self._records}
        databases = {database_of(directory) for directory in own}
        named = [each.registry.retention.named_by_others() for each in self._records]
        for directory in sorted((self._data_dir / "deployments").glob("*/")):
            database = database_of(directory)
            if database not in {None, *databases}:
                raise RegistryUnusable(
                    f"the records of {directory} are in {database}, which is not looked at here"
                )
            if directory not in own and (directory / FILE).exists():
                named.append(named_in(directory / FILE))
        return frozenset().union(*named)

    # -- content ------------------------------------------------------------------------------

    def _remove(self, plan: ContentPlan, report: Report, most: int, until: float) -> None:
        done = 0
        for stored, reason in plan.remove:
            if not report.dry_run and (done >= most or time.monotonic() > until):
                report.unfinished = True
                self._stays(stored, report, "left to the next round")
            elif report.dry_run or self._stores[stored.kind].remove(stored):
                done += 1
                report.add(_CONTENTS[stored.kind], reason.value, freed=True, bytes=stored.bytes)
            else:
                self._stays(stored, report, Reason.PINNED.value)
        for stored, reason in plan.keep:
            self._stays(stored, report, reason.value)

    def _stays(self, stored: Stored, report: Report, reason: str) -> None:
        report.stored_bytes[stored.kind] += stored.bytes
        report.add(_CONTENTS[stored.kind], reason, freed=False, bytes=stored.bytes)

    # -- leftovers ----------------------------------------------------------------------------

    def _leftovers(self, report: Report) -> None:
        logs = old_logs(self._data_dir, self._settings.engine_logs)
        for kind, reason, files in (
            ("engine logs", f"older than the {self._settings.engine_logs} newest", logs),
            (
                "logs of deployments",
                "past their retention",
                unused_logs(self._data_dir, self._settings.deployment_logs.total_seconds()),
            ),
            ("engine notes", "past their retention", self._old_notes()),
        ):
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    report.add(kind, reason, freed=True, bytes=file.stat().st_size)
                    if not report.dry_run:
                        file.unlink()
        if not report.dry_run:
            for store in self._stores.values():
                store.tidy()
            clear_unfinished(bases_dir(self._data_dir))
            there = {each.digest for each in self._store.contents()}
            for file in (self._store.root / "engine").glob("*.verified"):
                forget_verified(file, there)

    def _old_notes(self) -> Iterator[Path]:
        """Notes on engines that were not started for long, and leftovers of crashes."""
        directory = self._store.root / "engine"
        if not directory.is_dir():
            return
        now, limit = time.time(), self._settings.engine_notes.total_seconds()
        for entry in os.scandir(directory):
            unfinished = Path(entry.name).suffix not in (".json", ".verified")
            if now - entry.stat().st_mtime > (_PART_SECONDS if unfinished else limit):
                yield Path(entry.path)


@contextlib.contextmanager
def locked_records(data_dir: Path, storage: StorageConfig) -> Iterator[list[Records]]:
    """Every registry of a data directory, for a process that serves none.

    Raises DataDirInUse where a server has one.
    """
    with contextlib.ExitStack() as opened:
        found = []
        for directory in sorted((data_dir / "deployments").glob("*/")):
            opened.enter_context(lock_data_dir(directory))
            url = storage.database_url if database_of(directory) else None
            registry = opened.enter_context(Registry(place_of(directory, url)))
            registry.claim()
            files = ArtifactFiles(directory / "artifacts", registry.artifacts.files())
            found.append(Records(directory / FILE, registry, partial(_tidy, files, registry)))
        yield found


def _tidy(files: ArtifactFiles, registry: Registry) -> int:
    return files.drop_others(registry.artifacts.files())


def old_logs(data_dir: Path, keep: int) -> list[Path]:
    """Logs of engines beyond the newest ones, but for those of processes that run."""
    found = {path.name: path for path in logs_dir(data_dir).glob("engine-*.log")}
    old = [found[name] for name in oldest(found, keep) if not _runs(found[name])]
    return [file for log in old for file in (log, older(log, 1)) if file.exists()]


def unused_logs(data_dir: Path, seconds: float) -> list[Path]:
    """Logs of deployments that nothing was written to for so long."""
    limit = time.time() - seconds
    files = (each for name in CATEGORIES for each in (logs_dir(data_dir) / name).glob("*.log*"))
    return [file for file in files if file.stat().st_mtime < limit]


def _runs(log: Path) -> bool:
    pid = log.stem.rpartition("-")[2]
    return pid.isdigit() and Path(f"/proc/{pid}").exists()
