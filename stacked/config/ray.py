"""How many replicas Ray Serve starts of this file, and what each of them gets."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field, model_validator

from stacked.config.fields import Duration, Frozen


class ScaleConfig(Frozen):
    """As many replicas as the requests need, within bounds."""

    min: int = Field(default=1, ge=1)
    max: int = Field(ge=1)
    requests: int = Field(default=64, ge=1)
    """How many requests a replica has at once when it has enough to do."""
    first_token_seconds: float | None = Field(default=None, gt=0)
    """How long 95 % of streams may wait for their first bytes; None: however long."""
    up_after: Duration = timedelta(seconds=30)
    """How long more replicas must have been needed before they are started."""
    # A replica takes minutes to start, and loads every adapter again.
    down_after: Duration = timedelta(minutes=10)
    """How long fewer must have been needed before some are stopped."""

    @model_validator(mode="after")
    def _in_order(self) -> ScaleConfig:
        if self.min > self.max:
            raise ValueError(f"max: {self.max} is below min, {self.min}")
        return self


class RayConfig(Frozen):
    """Read by `stacked fleet deploy` alone; `server.host` and `port` are the fleet's address."""

    replicas: int | ScaleConfig = Field(default=1)
    """A number, or bounds, for as long as the deployment's scaling policy says nothing else."""
    # Nobody has tried more in one fleet.
    most: int = Field(default=16, ge=1)
    """How many a scaling policy may ask for over the control plane."""
    gpus: float = Field(default=0, ge=0)
    """Of one replica; Ray shows it no others."""
    cpus: float = Field(default=0, ge=0)
    """That Ray sets aside on a node for one replica. It uses what it uses."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Further resources of Ray's that a node must have for one replica, by name."""
    copies: int = Field(default=2, ge=1)
    """On how many replicas each key has its slot, where a group has more adapters than slots."""

    @model_validator(mode="after")
    def _some(self) -> RayConfig:
        if isinstance(self.replicas, int) and self.replicas < 1:
            raise ValueError(
                f"replicas: {self.replicas}; one or more (stacked fleet stop ends all)"
            )
        if self.bounds[1] > self.most:
            raise ValueError(f"replicas: {self.bounds[1]} is above most, {self.most}; raise that")
        return self

    @property
    def bounds(self) -> tuple[int, int]:
        """How many replicas at least and at most."""
        scale = self.replicas
        return (scale, scale) if isinstance(scale, int) else (scale.min, scale.max)
