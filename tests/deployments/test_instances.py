"""How many servers there are to be: what is shown, what is refused, what Ray Serve learns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client import REGISTRY

from stacked.config import RayConfig, ScaleConfig
from stacked.deployment.activation import Slot
from stacked.deployment.instances import ALONE, Bounds, Instances, Wanted
from stacked.errors import NotAllowed, ParameterInvalid
from tests.deployments.machine import Machine

ONE, TWO, THREE = (Bounds(count, count).policy for count in (1, 2, 3))
SOME = Bounds(2, 5).policy


@pytest.mark.parametrize("bounds", [Bounds(1, 1), Bounds(3, 3), Bounds(2, 5)])
def test_bounds_are_a_policy_and_back(bounds: Bounds) -> None:
    assert Bounds.of(bounds.policy) == bounds


def test_what_is_shown_is_what_counts() -> None:
    assert ALONE.shown(None) is None
    assert ALONE.shown(ONE) == ONE
    assert ALONE.shown(THREE) == ONE  # of a fleet that was here before
    fleet = Instances(2, fleet=True)
    assert fleet.shown(None) == fleet.shown(THREE) == fleet.shown(SOME) == TWO
    ray = Instances(2, fleet=True, ray=RayConfig(replicas=3))
    assert (ray.shown(None), ray.shown(SOME)) == (THREE, SOME)
    bounds = RayConfig(replicas=ScaleConfig(min=2, max=5))
    assert Instances(2, fleet=True, ray=bounds).shown(None) == SOME


def test_what_nobody_follows_is_refused() -> None:
    ALONE.check(ONE)
    Instances(2, fleet=True).check(TWO)
    ray = Instances(2, fleet=True, ray=RayConfig(most=5))
    ray.check(THREE)
    ray.check(SOME)
    for instances, policy, error, what in (
        (ALONE, TWO, ParameterInvalid, "one machine"),
        (ALONE, SOME, ParameterInvalid, "AUTOSCALING"),
        (Instances(2, fleet=True), THREE, NotAllowed, "start or stop servers"),
        (Instances(2, fleet=True), SOME, ParameterInvalid, "AUTOSCALING"),
        (ray, Bounds(10_000, 10_000).policy, ParameterInvalid, r"may have 5 \(ray\.most"),
        (ray, Bounds(1, 6).policy, ParameterInvalid, r"may have 5 \(ray\.most"),
    ):
        with pytest.raises(error, match=what):
            instances.check(policy)


def shown() -> tuple[float | None, ...]:
    name = "stacked_fleet_wanted_instances"
    bounds = (REGISTRY.get_sample_value(name, {"bound": each}) for each in ("least", "most"))
    return (*bounds, REGISTRY.get_sample_value("stacked_fleet_wanted_since_seconds"))


async def test_the_metrics_have_what_the_record_says(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    id = await machine.active(1)
    wanted, deployments = Wanted(machine.ledger, machine.slot), machine.registry.deployments
    assert (wanted.is_old(), wanted.is_old()) == (True, False)
    await wanted.read()
    assert shown() == (0, 0, deployments.get(id).time_updated.timestamp())
    for policy in (SOME, THREE):
        pool = {"infrastructure": {"scalingPolicy": policy}}
        record = deployments.update(id, configuration=pool)
        await wanted.read()
        assert shown() == (*Bounds.of(policy), record.time_updated.timestamp())
    gone = cast("Slot", SimpleNamespace(occupant=SimpleNamespace(deployment_id="none")))
    await Wanted(machine.ledger, gone).read()  # what cannot be read stays as it was
    assert shown() == (3, 3, record.time_updated.timestamp())
    await machine.close()
