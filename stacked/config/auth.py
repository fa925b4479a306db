"""Who may call."""

from __future__ import annotations

import ipaddress

from pydantic import Field, field_validator, model_validator

from stacked.config.fields import Frozen


class OciAuth(Frozen):
    """Requests must be signed as by OCI's SDKs, with one of these keys."""

    keys: dict[str, str] = Field(default_factory=dict)
    """`tenancy/user/fingerprint` to a public key: PEM, or the path of one."""
    clock_skew_seconds: float = Field(default=300, gt=0, le=3600)
    """How far a request's date may be from the server's clock."""


class AuthConfig(Frozen):
    """Who may call. With none of these, everyone on this machine."""

    bearer: bool = False
    """Whether requests may have a token of `stacked keys create`."""
    oci: OciAuth | None = None
    directory: str | None = None
    """Where the credentials are; None: `keys` in the data directory."""
    none: bool = False
    """Whether anyone may call who reaches the address."""

    @property
    def required(self) -> bool:
        """Whether requests need a credential."""
        return self.bearer or self.oci is not None

    @field_validator("oci", mode="before")
    @classmethod
    def _on_or_described(cls, value: object) -> object:
        if value is None or value is False:  # an empty `oci:` was not meant to switch it off
            raise ValueError("expected true, or a mapping with keys, clock_skew_seconds")
        return {} if value is True else value

    @model_validator(mode="after")
    def _one_of_them(self) -> AuthConfig:
        if self.required and self.none:
            raise ValueError(
                "bearer and oci require a credential and none requires nothing; set only one"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
