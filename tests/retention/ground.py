"""A data directory with a catalogue in it, and what fills it: models, groups, a deployment.

Everything is real but the engine, which nobody needs to collect.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path

from stacked.catalogue import Catalogue
from stacked.config import RetentionConfig
from stacked.core import VERSIONED, Digest
from stacked.registry import (
    GROUP,
    Deployment,
    DeploymentState,
    GroupMember,
    GroupRecord,
    Model,
    Registry,
    Shared,
    new_id,
)
from stacked.registry.places import note_database
from stacked.retention.collect import Collector, Records, Report
from stacked.store import AdapterStore, BaseModules
from tests.api.control.plane import BASE, DEPLOYMENT, stock
from tests.store.small import write_adapter, write_base

TAGS = {"freeform": VERSIONED}
SETTINGS = RetentionConfig(group_versions=3, deleted_records=timedelta(0))


class Ground:
    """`in_use` is what an engine would need now."""

    def __init__(
        self, data_dir: Path, name: str = "demo", place: Path | Shared | None = None
    ) -> None:
        self.data_dir = data_dir
        self.sources = data_dir / "sources"
        directory = data_dir / "deployments" / name
        self.path = directory / "registry.sqlite"
        self.registry = Registry(place or self.path)
        self.store = AdapterStore(data_dir / "store")
        self.catalogue = Catalogue(
            self.registry, self.store, directory / "artifacts", roots=[str(self.sources)]
        )
        if place is not None:
            note_database(directory, place)
        self.in_use: frozenset[str] = frozenset()

    def stock(self) -> None:
        """A base, a group of it alone, and a deployment that serves that."""
        base = self.sources / "base"
        stock(self.registry, base if base.exists() else write_base(base))

    def collector(self, settings: RetentionConfig = SETTINGS) -> Collector:
        records = Records(self.path, self.registry, self.catalogue.tidy_files)
        return Collector(settings, self.data_dir, self.store, [records], in_use=lambda: self.in_use)

    def collect(self, settings: RetentionConfig = SETTINGS, **more: bool) -> Report:
        return self.collector(settings).run(**more)

    def register(self, seed: int, id: str | None = None) -> Model:
        """A model of the adapter of this seed."""
        source = self.sources / f"adapter-{seed}"
        if not source.exists():
            write_adapter(source, seed=seed)
        new = Model(id="", display_name=f"m{seed}", tags=TAGS)
        return self.catalogue.register(new, str(source), id)

    def group(self, *models: Model, name: str = "g", **more: str) -> GroupRecord:
        members = (GroupMember(BASE), *(GroupMember(model.id) for model in models))
        group = GroupRecord(
            id=new_id(GROUP),
            display_name=name,
            base_model_id=BASE,
            members=members,
            tags=TAGS,
            **more,
        )
        return self.catalogue.registry.groups.create(group, check=True)

    def deploy(self, group: GroupRecord) -> Deployment:
        """As an update that has succeeded leaves the records."""
        registry = self.registry
        generation = registry.deployments.get(DEPLOYMENT).generation + 1
        work = registry.work_requests.open("MODEL_DEPLOYMENT_UPDATE")
        registry.work_requests.advance(work.id, 1)
        registry.deployments.set_state(DEPLOYMENT, DeploymentState.UPDATING)
        deployed = registry.deployments.commit(DEPLOYMENT, group.id, generation, work.id)
        registry.work_requests.succeed(work.id)
        return deployed

    def base(self) -> BaseModules:
        return self.catalogue.bases.modules(self.registry.models.get(BASE))

    def digests(self) -> set[Digest]:
        return {each.digest for each in self.store.contents()}

    def age(self, digests: Collection[str] = ()) -> None:
        """As if these adapters, or all of them, had been used last a week ago."""
        then = time.time() - 7 * 86400
        for each in self.store.contents():
            if not digests or each.digest in digests:
                path = self.store.get(each.digest).path
                os.utime(path, (then, then))
