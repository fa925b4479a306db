"""What a deployment may be asked: the bodies of its requests, to values.

Pure: it reads and refuses, and names the place. It must not know what is live.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from stacked.api.asked.common import (
    Body,
    Described,
    Description,
    Json,
    Tagged,
    changed_places,
    not_yet,
)
from stacked.deployment.settings import MOST_BYTES
from stacked.errors import ParameterInvalid

DETAILS = "modelDeploymentConfigurationDetails"
INFRASTRUCTURE = "infrastructureConfigurationDetails"
ENVIRONMENT = "environmentConfigurationDetails"

# Those of the platform's own processes.
_TAKEN_PORTS = (24224, 8446, 8447)


def _free_port(port: int) -> int:
    if port in _TAKEN_PORTS:
        raise ValueError(f"{port} is the platform's own")
    return port


Port = Annotated[int, Field(ge=1024, le=65535), AfterValidator(_free_port)]


class GroupChoice(Body):
    model_group_id: str = Field(min_length=1)


class Instance(Body):
    instance_shape_name: str = Field(min_length=1)


class Scaling(Body):
    policy_type: Literal["FIXED_SIZE", "AUTOSCALING"]
    instance_count: int | None = None


class InstancePool(Body):
    """What runs it. One machine is what there is; the rest is kept as it was given."""

    infrastructure_type: Literal["INSTANCE_POOL"]
    instance_configuration: Instance
    scaling_policy: Scaling | None = None

    def check(self) -> None:
        """Raises ParameterInvalid for more than one machine."""
        policy = self.scaling_policy
        if policy is None:
            return
        if policy.policy_type != "FIXED_SIZE":
            raise not_yet(f"scalingPolicy.policyType {policy.policy_type} (FIXED_SIZE is)")
        if policy.instance_count not in (None, 1):
            raise ParameterInvalid(
                f"scalingPolicy.instanceCount is {policy.instance_count}; this server is one "
                "machine, so it is 1"
            )


class Environment(Body):
    """What a deployment is told. Ports are this server's own: checked and kept, not bound."""

    environment_configuration_type: Literal["DEFAULT", "OCIR_CONTAINER"]
    environment_variables: dict[str, str] | None = None
    cmd: list[str] | None = None
    entrypoint: list[str] | None = None
    server_port: Port | None = None
    health_check_port: Port | None = None

    @model_validator(mode="after")
    def _short_command(self) -> Environment:
        words = [*(self.cmd or ()), *(self.entrypoint or ())]
        if sum(len(word.encode()) for word in words) >= MOST_BYTES:
            raise ValueError(f"cmd and entrypoint together are under {MOST_BYTES} bytes")
        return self


class Configuration(Body):
    """What both bodies say of how a group is served."""

    deployment_type: str
    model_group_configuration_details: GroupChoice | None = None
    infrastructure_configuration_details: InstancePool | None = None
    environment_configuration_details: Environment | None = None

    def check(self) -> None:
        """Raises ParameterInvalid for what this server cannot be."""
        if self.deployment_type != "MODEL_GROUP":
            raise not_yet(f"deploymentType {self.deployment_type[:40]!r} (MODEL_GROUP is)")
        if self.infrastructure_configuration_details is not None:
            self.infrastructure_configuration_details.check()


class NewConfiguration(Configuration):
    @model_validator(mode="before")
    @classmethod
    def _kind_first(cls, value: Any) -> Any:
        """A single model has no group: that it is not served yet is what its sender must hear."""
        kind = value.get("deploymentType") if isinstance(value, Mapping) else None
        if isinstance(kind, str) and kind != "MODEL_GROUP":
            raise not_yet(f"deploymentType {kind[:40]!r} (MODEL_GROUP is)")
        return value


class CreateDeployment(Tagged):
    """`POST /modelDeployments`."""

    description: Description = ""
    model_deployment_configuration_details: NewConfiguration
    category_log_details: Json | None = None

    def group_id(self) -> str:
        """The group to serve. Raises ParameterInvalid."""
        details = self.model_deployment_configuration_details
        details.check()
        if details.model_group_configuration_details is None:
            raise ParameterInvalid(f"{DETAILS}.modelGroupConfigurationDetails is missing")
        return details.model_group_configuration_details.model_group_id

    def name(self) -> str:
        """What it is called; a name is made where none is given."""
        return self.display_name or f"modeldeployment-{datetime.now(UTC):%Y%m%d-%H%M%S}"


class DeploymentChange(Configuration):
    update_type: Literal["LIVE", "ZDT"] | None = None


class UpdateDeployment(Described):
    """`PUT /modelDeployments/{id}`."""

    model_deployment_configuration_details: DeploymentChange | None = None
    category_log_details: Json | None = None


def parts_given(tree: Json) -> Json:
    """The blocks of a body that are kept as they were given, by the name they are kept under.

    What is null in them was left out.
    """
    details = tree.get(DETAILS) or {}
    given = {
        "infrastructure": details.get(INFRASTRUCTURE),
        "environment": details.get(ENVIRONMENT),
        "logs": tree.get("categoryLogDetails"),
    }
    return {
        part: {name: value for name, value in block.items() if value is not None}
        for part, block in given.items()
        if block is not None
    }


def changed_parts(tree: Json, shown: Json) -> Json:
    """The kept blocks that differ from those `shown`; what is left out of a block stays."""
    details = shown[DETAILS]
    kept = {
        "infrastructure": details[INFRASTRUCTURE],
        "environment": details[ENVIRONMENT],
        "logs": shown["categoryLogDetails"] or {},
    }
    merged = {name: {**kept[name], **given} for name, given in parts_given(tree).items()}
    return {name: block for name, block in merged.items() if block != kept[name]}


def check_live(tree: Json, shown: Json) -> None:
    """LIVE changes the model group alone; clients send the other blocks along as they are.

    Raises ParameterInvalid naming what differs.
    """
    names = (INFRASTRUCTURE, ENVIRONMENT)
    given = {name: value for name, value in tree[DETAILS].items() if name in names and value}
    changed = changed_places(given, shown[DETAILS], "")
    if changed:
        raise ParameterInvalid(
            f"LIVE changes the model group alone, and {', '.join(changed)} differs too; "
            "use updateType ZDT"
        )
