"""The scaling policy of a fleet's deployment, by OCI's own SDK: shown, followed, refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from oci.data_science import DataScienceClient
from oci.data_science import models as sdk
from oci.exceptions import ServiceError
from typer.testing import CliRunner, Result

from stacked.cli import app
from stacked.config import FleetConfig, RayConfig
from stacked.fleet.shared import Fleet, Found, Join, Leave, Mode, Report
from stacked.registry.fleets import FleetStore
from tests.api.doors import sdk_config
from tests.contract.rig import Rig, rig
from tests.waiting import until


@dataclass
class Deployed:
    """A deployment that two servers serve, and its client."""

    server: Rig
    client: DataScienceClient
    id: str

    def shown(self) -> Any:
        return self.client.get_model_deployment(self.id).data

    @property
    def policy(self) -> Any:
        details = self.shown().model_deployment_configuration_details
        return details.infrastructure_configuration_details.scaling_policy

    @property
    def stored(self) -> Any:
        return self.server.service.registry.deployments.get(self.id).configuration

    def put(self, policy: Any, shape: str = "LOCAL", **more: Any) -> str:
        """Update it as clients do, which send all blocks; what the work request says."""
        pool = sdk.UpdateInstancePoolInfrastructureConfigurationDetails(
            instance_configuration=sdk.InstanceConfiguration(instance_shape_name=shape),
            scaling_policy=policy,
        )
        group = self.shown().model_deployment_configuration_details
        chosen = group.model_group_configuration_details.model_group_id
        details = sdk.UpdateModelGroupDeploymentConfigurationDetails(
            model_group_configuration_details=sdk.UpdateModelGroupConfigurationDetails(
                model_group_id=more.pop("group", chosen)
            ),
            infrastructure_configuration_details=pool,
            **more,
        )
        body = sdk.UpdateModelDeploymentDetails(model_deployment_configuration_details=details)
        answer = self.client.update_model_deployment(self.id, body)
        work = answer.headers["opc-work-request-id"]
        until(lambda: self.client.get_work_request(work).data.time_finished is not None)
        return str(self.client.get_work_request(work).data.status)

    def refused(self, policy: Any, **more: Any) -> tuple[int, str]:
        with pytest.raises(ServiceError) as caught:
            self.put(policy, **more)
        return caught.value.status, caught.value.code


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    directory = tmp_path_factory.mktemp("blocks")
    with rig(directory) as server:
        server.stock()
        store = FleetStore(directory / "fleet.sqlite")
        store.carry_out("", Found(Fleet(Mode.GLOBAL, 1, "g", 1)))
        fleet = FleetConfig(lease_seconds=60)
        server.service.config = server.service.config.model_copy(update={"fleet": fleet})
        server.service.ledger.fleet = store
        client = DataScienceClient(sdk_config(directory), service_endpoint=server.url)
        yield Deployed(server, client, server.ids["modelDeployments"][0])


@pytest.fixture
def deployed(running: Deployed) -> Deployed:
    running.server.service.ray = None
    store = running.server.service.ledger.fleet
    assert store is not None
    for id in ("a/1", "b/1"):
        store.carry_out(id, Leave(id))
        store.carry_out(id, Join(Report(id, id[0], 1, 1)))
    running.server.service.registry.deployments.update(
        running.id, configuration={"infrastructure": None}
    )
    return running


def fixed(count: int) -> sdk.FixedSizeScalingPolicy:
    return sdk.FixedSizeScalingPolicy(instance_count=count)


def bounds(least: int, most: int, **more: Any) -> sdk.AutoScalingPolicy:
    rule = sdk.PredefinedMetricExpressionRule(metric_type="CPU_UTILIZATION")
    only = sdk.ThresholdBasedAutoScalingPolicyDetails(
        rules=[rule], minimum_instance_count=least, maximum_instance_count=most
    )
    return sdk.AutoScalingPolicy(auto_scaling_policies=[only], **more)


def test_where_nobody_starts_servers_their_number_is_shown_and_no_other_taken(
    deployed: Deployed,
) -> None:
    assert deployed.policy.instance_count == 2
    assert deployed.shown().model_deployment_system_data.current_instance_count == 2
    (listed,) = deployed.client.list_model_deployments("c", id=deployed.id).data
    assert listed.model_deployment_system_data.current_instance_count == 2
    assert deployed.refused(fixed(3)) == (403, "NotAllowed")
    assert deployed.refused(bounds(1, 2)) == (400, "InvalidParameter")
    assert deployed.put(deployed.policy, shape="another") == "SUCCEEDED"
    pool = deployed.stored["infrastructure"]
    assert (pool["instanceConfiguration"]["instanceShapeName"], "scalingPolicy" in pool) == (
        "another",
        False,
    )
    assert deployed.policy.instance_count == 2


def test_under_ray_the_record_counts_and_else_the_file(deployed: Deployed) -> None:
    settings = RayConfig(replicas=3, most=5)
    deployed.server.service.ray = lambda: settings
    assert deployed.policy.instance_count == 3
    # What a client was shown and sends back is no wish of its own: the file counts on.
    assert deployed.put(deployed.policy, shape="another") == "SUCCEEDED"
    settings = RayConfig.model_validate({"replicas": {"min": 2, "max": 4}})
    shown = deployed.policy
    assert shown.auto_scaling_policies[0].minimum_instance_count == 2
    assert shown.auto_scaling_policies[0].maximum_instance_count == 4
    assert deployed.put(shown, shape="a third") == "SUCCEEDED"
    assert "scalingPolicy" not in deployed.stored["infrastructure"]

    assert deployed.put(fixed(4)) == "SUCCEEDED"
    assert (deployed.policy.policy_type, deployed.policy.instance_count) == ("FIXED_SIZE", 4)
    assert deployed.put(bounds(1, 5, cool_down_in_seconds=600)) == "SUCCEEDED"
    only = deployed.policy.auto_scaling_policies[0]
    assert (only.minimum_instance_count, only.maximum_instance_count) == (1, 5)
    assert deployed.policy.cool_down_in_seconds == 600
    assert deployed.shown().model_deployment_system_data.current_instance_count == 2


def test_an_update_of_the_group_takes_the_shown_policy_and_no_other(deployed: Deployed) -> None:
    deployed.server.service.ray = lambda: RayConfig(replicas=3)
    group = deployed.server.ids["modelGroups"][1]
    live: dict[str, Any] = {"update_type": "LIVE", "group": group}
    assert deployed.refused(fixed(2), **live) == (400, "InvalidParameter")
    assert deployed.put(deployed.policy, **live) == "SUCCEEDED"


@pytest.mark.parametrize(
    "policy",
    [
        fixed(6),
        fixed(0),
        fixed(-1),
        bounds(1, 10_000),
        bounds(4, 3),
        bounds(0, 3),
        bounds(1, 2, is_enabled=False),
        sdk.AutoScalingPolicy(auto_scaling_policies=[]),
    ],
)
def test_what_cannot_be_is_refused(deployed: Deployed, policy: Any) -> None:
    deployed.server.service.ray = lambda: RayConfig(replicas=3, most=5)
    before = deployed.stored
    assert deployed.refused(policy) == (400, "InvalidParameter")
    assert deployed.stored == before


def test_the_command_sends_a_number_or_bounds(deployed: Deployed) -> None:
    deployed.server.service.ray = lambda: RayConfig(replicas=3, most=5)

    def scale(*bounds: str) -> Result:
        return CliRunner().invoke(app, ["fleet", "scale", *bounds, "--url", deployed.server.url])

    assert scale("4").exit_code == 0
    assert deployed.policy.instance_count == 4
    assert scale("1", "5").exit_code == 0
    only = deployed.policy.auto_scaling_policies[0]
    assert (only.minimum_instance_count, only.maximum_instance_count) == (1, 5)
    refused = scale("6")
    assert (refused.exit_code, "ray.most" in str(refused.exception)) == (1, True)
