"""The blocks of a deployment that are stored and shown as they were given: what runs it, its
environment, where its logs go. Requests and responses have the same models of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from stacked.api.control.base import Json, RequestModel
from stacked.api.errors import fault_of
from stacked.deployment.instances import AUTOSCALING, Bounds, Instances
from stacked.errors import ParameterInvalid
from stacked.registry.records import Deployment
from stacked.serving.settings import MOST_BYTES

# Those of the platform's own processes.
_PLATFORM_PORTS = (24224, 8446, 8447)


def _optional() -> Any:
    return Field(None, exclude_if=lambda value: value is None)


class Block(RequestModel):
    """Stored and shown as given, undeclared fields included. A null means an absent field."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: each for name, each in value.items() if each is not None}

    def stored(self) -> Json:
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def updated(self, given: Block) -> Self:
        """This block with the fields that `given` sets; the others stay.

        Raises ParameterInvalid where the result is not valid.
        """
        try:
            return self.model_validate({**self.stored(), **given.stored()})
        except ValidationError as error:
            raise ParameterInvalid(fault_of(error.errors())[1]) from error

    def differing(self, given: Block, place: str) -> list[str]:
        """The places where `given` sets another value than this block has."""
        return list(_differing(given.stored(), self.stored(), place))


def _differing(given: Any, there: Any, place: str) -> Iterator[str]:
    if isinstance(given, Mapping) and isinstance(there, Mapping):
        for name, value in given.items():
            yield from _differing(value, there.get(name), f"{place}.{name}")
    elif given != there and (given or there):
        yield place


class Instance(Block):
    instance_shape_name: str = Field(min_length=1)


class Thresholds(Block):
    """The bounds take effect; when there are more or fewer is up to the fleet, not to `rules`."""

    auto_scaling_policy_type: Literal["THRESHOLD"]
    minimum_instance_count: int = Field(ge=1)
    maximum_instance_count: int = Field(ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.minimum_instance_count > self.maximum_instance_count:
            raise ValueError("minimumInstanceCount is above maximumInstanceCount")
        return self


class Scaling(Block):
    policy_type: Literal["FIXED_SIZE", "AUTOSCALING"]
    instance_count: int | None = Field(None, ge=1, exclude_if=lambda value: value is None)
    is_enabled: bool | None = _optional()
    auto_scaling_policies: list[Thresholds] | None = _optional()

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if self.policy_type == AUTOSCALING and len(self.auto_scaling_policies or ()) != 1:
            raise ValueError("AUTOSCALING has one of autoScalingPolicies")
        if self.is_enabled is False:
            raise ValueError("isEnabled is false; FIXED_SIZE with an instanceCount is the same")
        return self


class InstancePool(Block):
    """The infrastructure of a deployment: its machines."""

    infrastructure_type: Literal["INSTANCE_POOL"]
    instance_configuration: Instance
    scaling_policy: Scaling | None = _optional()

    def shown(self, instances: Instances) -> Self:
        """With the policy that counts."""
        stored = None if self.scaling_policy is None else self.scaling_policy.stored()
        policy = instances.shown(stored)
        changed = {} if policy is None else {"scalingPolicy": policy}
        return self.model_validate({**self.stored(), **changed})

    def wanted(self, shown: InstancePool, instances: Instances) -> Self:
        """What of this block is to be stored where `shown` is there.

        A client sends back the policy that it was shown, and asks for nothing with it. Raises
        ParameterInvalid or NotAllowed for one that is not followed here.
        """
        policy, there = self.scaling_policy, shown.scaling_policy
        if policy is None:
            return self
        if there is not None and not there.differing(policy, ""):
            stored = self.stored()
            del stored["scalingPolicy"]
            return self.model_validate(stored) if instances.fleet else self
        instances.check(policy.stored())
        return self


def _free_port(port: int) -> int:
    if port in _PLATFORM_PORTS:
        raise ValueError(f"{port} is the platform's own")
    return port


Port = Annotated[int, Field(ge=1024, le=65535), AfterValidator(_free_port)]


class Environment(Block):
    """Variables take effect; ports are checked and stored, but this server binds its own."""

    environment_configuration_type: Literal["DEFAULT", "OCIR_CONTAINER"]
    environment_variables: dict[str, str] = Field(default_factory=dict)
    cmd: list[str] | None = _optional()
    entrypoint: list[str] | None = _optional()
    server_port: Port | None = _optional()
    health_check_port: Port | None = _optional()

    @model_validator(mode="after")
    def _short_command(self) -> Self:
        words = [*(self.cmd or ()), *(self.entrypoint or ())]
        if sum(len(word.encode()) for word in words) >= MOST_BYTES:
            raise ValueError(f"cmd and entrypoint together are under {MOST_BYTES} bytes")
        return self


class Log(Block):
    """`log_id` is the name of a file here."""

    log_id: str | None = _optional()


class Logs(Block):
    access: Log | None = _optional()
    predict: Log | None = _optional()


class Blocks(NamedTuple):
    """Of a deployment, under the names that they are stored under."""

    infrastructure: InstancePool
    environment: Environment
    logs: Logs

    @classmethod
    def of(cls, record: Deployment, instances: Instances) -> Blocks:
        """As they are stored, or else as they are by default."""
        stored = record.configuration
        pool: Json = {
            "infrastructureType": "INSTANCE_POOL",
            "instanceConfiguration": {"instanceShapeName": "LOCAL"},
        }
        if not instances.fleet:
            pool["scalingPolicy"] = Bounds(1, 1).policy
        default = {"environmentConfigurationType": "DEFAULT"}
        return cls(
            InstancePool.model_validate(stored.get("infrastructure") or pool),
            Environment.model_validate(default | (stored.get("environment") or {})),
            Logs.model_validate(stored.get("logs") or {}),
        )
