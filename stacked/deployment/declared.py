"""What a configuration file declares, as records: base, members, group, and their deployment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stacked.core import VERSIONED, Adapter, Base, Member, ModelFiles, ModelGroup
from stacked.deployment.ledger import ENTITY, Ledger
from stacked.registry import (
    DEPLOYMENT,
    GROUP,
    Affected,
    Deployment,
    DeploymentState,
    GroupMember,
    GroupRecord,
    Model,
    Registry,
    new_id,
)


def begin(
    ledger: Ledger,
    held: Deployment | None,
    declared: ModelGroup | None,
    configuration: Mapping[str, Any],
    served: ModelGroup | None,
) -> Deployment:
    """Register base, members, group and deployment of a file; commit the group if it is new.

    `declared` is None if the config's adapters are gone: what it declared before stays.
    `served` is None where the committed group is. Idempotent: the same config registers nothing
    twice.
    """
    registry = ledger.registry
    if declared is not None:
        _register(registry, declared)
        if held is None:
            new = Deployment(id=new_id(DEPLOYMENT), display_name=declared.name)
            held = registry.deployments.create(new)
    assert held is not None, "a group that is not declared was committed before"
    held = registry.deployments.update(held.id, configuration=configuration)
    fresh = served is not None and held.group_id != group_id_of(served)
    quarantined = {} if fresh else ledger.quarantined(held)
    if served is not None and fresh:
        held = _commit_first(registry, held, group_id_of(served))
    ledger.set_aside(held.id, "the deployment of the configuration file is served")
    ledger.served(held.id, quarantined)
    return registry.deployments.get(held.id)


def _register(registry: Registry, group: ModelGroup) -> None:
    base = group.base
    models = [_model_record(member, base) for member in group]
    members = _entries(group.members)
    if base is not None:
        members = (GroupMember(base.model_id, base.key), *members)
        of_base = Model(
            id=base.model_id,
            kind="base",
            display_name=base.key,
            digest=base.digest,
            source=base.path,
        )
        models.insert(0, of_base)  # which the records of adapters name
    # Users may have changed a model's description since: a restart does not overwrite it.
    registry.models.put_all(list({model.id: model for model in models}.values()), describe=False)
    if base is not None:
        _find_base_again(registry, base)
    registry.groups.create(
        GroupRecord(
            id=group_id_of(group),
            display_name=group.name,
            kind=group.kind,
            base_model_id=base.model_id if base else None,
            members=members,
            tags={"freeform": VERSIONED},
            custom_metadata=tuple(
                {"key": key, "value": value} for key, value in group.metadata.items()
            ),
        )
    )


def _find_base_again(registry: Registry, base: Base) -> None:
    """A base that was moved on this machine: later starts look where the file says it is."""
    stored = registry.models.get(base.model_id)
    if stored.source != base.path:
        registry.models.put(replace(stored, source=base.path))


def _commit_first(registry: Registry, held: Deployment, group_id: str) -> Deployment:
    operation = "MODEL_DEPLOYMENT_UPDATE" if held.group_id else "MODEL_DEPLOYMENT_CREATE"
    work = registry.work_requests.open(operation, [Affected("UPDATED", ENTITY, held.id)])
    registry.work_requests.advance(work.id, 1.0, "serving the group of the config file")
    if held.state is not DeploymentState.CREATING:
        registry.deployments.set_state(held.id, DeploymentState.UPDATING)
    held = registry.deployments.commit(held.id, group_id, held.generation + 1, work.id)
    registry.work_requests.succeed(work.id)
    return held


def group_id_of(group: ModelGroup) -> str:
    """The id of the group that a config declares: the same content, the same id."""
    content = {
        "base": [group.base.model_id, group.base.key] if group.base else group.kind,
        "name": group.name,
        "members": [[m.model_id, m.content.digest, m.key, m.weight] for m in group],
        "metadata": dict(group.metadata),
    }
    text = json.dumps(content, sort_keys=True).encode()
    return f"ocid1.{GROUP}.oc1..{hashlib.sha256(text).hexdigest()}"


def _model_record(member: Member, base: Base | None) -> Model:
    """The record of a member's model; an adapter was checked against this base."""
    content = member.content
    files = content.files if isinstance(content, ModelFiles) else None
    return Model(
        id=member.model_id,
        kind="adapter" if base else "model",
        display_name=member.label,
        digest=files or content.digest,
        rank=Adapter.of(content).rank if base else 0,
        bytes=content.bytes,
        base_model_id=base.model_id if base else None,
        tags={"freeform": VERSIONED},
    )


def _entries(members: Sequence[Member]) -> tuple[GroupMember, ...]:
    return tuple(GroupMember(member.model_id, member.key, member.weight) for member in members)
