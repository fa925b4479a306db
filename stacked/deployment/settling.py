"""The records of a fleet's deployment, as the fleet has decided, whoever writes it first."""

from __future__ import annotations

from stacked.fleet.shared import Fleet, Stage
from stacked.registry import Registry


def settle(registry: Registry, deployment_id: str, fleet: Fleet, gone: bool) -> None:
    """Have the deployment's record follow what is committed, which is the fleet's row.

    `gone`: the process that ran the newest update does not end its work request, so that is ended
    here too. Blocks; idempotent, and right if any number of replicas do it at the same time.
    """
    deployments = registry.deployments
    committed = fleet.stage is Stage.COMMITTED
    newest = fleet.proposal if committed and fleet.proposal else None
    deployments.follow(deployment_id, fleet.group, fleet.generation, newest)
    if gone and fleet.proposal and fleet.at_rest:
        failure = "" if committed else fleet.reason
        deployments.end_update(deployment_id, fleet.proposal, failure)
