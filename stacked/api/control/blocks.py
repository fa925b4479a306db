"""The blocks of a deployment that are stored and shown as they were given: what runs it, its
environment, where its logs go. Requests and responses have the same models of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from stacked.api.control.base import Json, RequestModel
from stacked.api.errors import fault_of
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


class Scaling(Block):
    policy_type: str
    instance_count: int | None = _optional()

    @model_validator(mode="after")
    def _one_machine(self) -> Self:
        if self.policy_type != "FIXED_SIZE":
            raise ValueError(f"policyType {self.policy_type[:40]!r} is not served; FIXED_SIZE is")
        if self.instance_count not in (None, 1):
            raise ValueError(
                f"instanceCount is {self.instance_count}; this server is one machine, so it is 1"
            )
        return self


class InstancePool(Block):
    """The infrastructure of a deployment: one machine."""

    infrastructure_type: Literal["INSTANCE_POOL"]
    instance_configuration: Instance
    scaling_policy: Scaling | None = _optional()


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


def blocks_of(record: Deployment) -> dict[str, Block]:
    """The blocks of a deployment, by the name they are stored under."""
    stored = record.configuration
    pool = {
        "infrastructureType": "INSTANCE_POOL",
        "instanceConfiguration": {"instanceShapeName": "LOCAL"},
        "scalingPolicy": {"policyType": "FIXED_SIZE", "instanceCount": 1},
    }
    default = {"environmentConfigurationType": "DEFAULT"}
    return {
        "infrastructure": InstancePool.model_validate(stored.get("infrastructure") or pool),
        "environment": Environment.model_validate(default | (stored.get("environment") or {})),
        "logs": Logs.model_validate(stored.get("logs") or {}),
    }
