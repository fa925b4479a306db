"""Records to put into a registry."""

from __future__ import annotations

from typing import Any

from stacked.registry import (
    DEPLOYMENT,
    GROUP,
    Artifact,
    Deployment,
    DeploymentState,
    GroupMember,
    GroupRecord,
    Model,
    Registry,
    new_id,
)

BASE = "ocid1.datasciencemodel.oc1..base"


def base() -> Model:
    return Model(id=BASE, kind="base", digest="sha256:" + "0" * 64, display_name="base")


def adapter(number: int, **more: Any) -> Model:
    """An adapter whose id and content follow from its number."""
    given: dict[str, Any] = {
        "id": f"ocid1.datasciencemodel.oc1..{number:08x}",
        "kind": "adapter",
        "digest": f"sha256:{number:064x}",
        "display_name": f"adapter {number:06}",
        "rank": 8,
        "bytes": 1000 + number,
    }
    return Model(**given | more)


def group(*numbers: int, **more: Any) -> GroupRecord:
    """A group of the base and these adapters, under keys `k<number>`."""
    members = (
        GroupMember(BASE, "base"),
        *(GroupMember(adapter(number).id, f"k{number}") for number in numbers),
    )
    given: dict[str, Any] = {"id": new_id(GROUP), "base_model_id": BASE, "members": members}
    return GroupRecord(**given | more)


def stocked(registry: Registry, adapters: int = 4) -> None:
    """Put the base and adapters 0, 1, 2, …"""
    registry.models.put_all([base(), *(adapter(number) for number in range(adapters))])


def deployed(registry: Registry, **more: Any) -> Deployment:
    """A new deployment without a group."""
    return registry.deployments.create(Deployment(id=new_id(DEPLOYMENT), **more))


def started(registry: Registry, operation: str = "MODEL_DEPLOYMENT_UPDATE") -> str:
    """A work request in progress."""
    request = registry.work_requests.open(operation)
    return registry.work_requests.advance(request.id, 1).id


def artifact(owner: str, sha256: str = "1", part: str = "") -> Artifact:
    return Artifact(owner_id=owner, part=part, sha256=sha256, md5="m", bytes=3, name="a.zip")


def updated(registry: Registry, deployment: str, to: GroupRecord, generation: int) -> Deployment:
    if registry.deployments.get(deployment).state is DeploymentState.ACTIVE:
        registry.deployments.set_state(deployment, DeploymentState.UPDATING)
    request = started(registry)
    committed = registry.deployments.commit(deployment, to.id, generation, request)
    registry.work_requests.succeed(request)
    return committed
