"""Who may call."""

from __future__ import annotations

import ipaddress

from pydantic import Field, field_validator, model_validator

from stacked.config.fields import Frozen


class OciAuth(Frozen):
    """Requests must be signed as by OCI's SDKs, with one of these keys."""

    keys: dict[str, str] = Field(default_factory=dict)
    """`tenancy/user/fingerprint` to a public key: PEM, or the path of one."""
    directory: str | None = None
    """Where `stacked keys create` registers keys; None: `keys` in the data directory."""
    clock_skew_seconds: float = Field(default=300, gt=0, le=3600)
    """How far a request's date may be from the server's clock."""


class AuthConfig(Frozen):
    """Who may call. With neither, unsigned requests are accepted, on loopback only."""

    oci: OciAuth | None = None
    none: bool = False
    """Whether unsigned requests are accepted on any address."""

    @field_validator("oci", mode="before")
    @classmethod
    def _on_or_described(cls, value: object) -> object:
        if value is None or value is False:  # an empty `oci:` was not meant to switch it off
            raise ValueError("expected true, or a mapping with keys, directory, clock_skew_seconds")
        return {} if value is True else value

    @model_validator(mode="after")
    def _one_of_them(self) -> AuthConfig:
        if self.oci is not None and self.none:
            raise ValueError(
                "oci requires signed requests and none accepts unsigned ones; set only one"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
