"""Who sends a request, and what that caller may do: the same for every kind of credential."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SCOPE = "stacked.caller"


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much one caller may ask for; None: no limit of its own."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Tokens of prompts and of answers."""
    concurrency: int | None = None
    """Requests in flight."""


@dataclass(frozen=True, slots=True)
class Caller:
    """One authenticated caller. `name` is shown in logs, metrics and usage."""

    name: str
    user: str = ""
    """The OCID of the user who signs; empty for other credentials."""
    admin: bool = False
    """Whether it may do more than ask models."""
    keys: frozenset[str] | None = None
    """The inference keys and model ids that it may ask and learn of; None: all."""
    allowance: Allowance = Allowance()
    weight: float = 1.0
    """Its share when callers wait for the engine."""
    batch: bool = False
    """Whether its requests let those of others go first."""

    @property
    def id(self) -> str:
        """What it is told apart by: the user where there is one, else the name."""
        return self.user or self.name

    def may_ask(self, key: str) -> bool:
        return self.keys is None or key in self.keys


ANYONE = Caller("anyone", admin=True)
"""The caller of a server that authenticates no one."""
NOBODY = Caller("nobody", keys=frozenset())
"""A caller who showed no credential where one is required: a health probe."""


def caller_of(scope: Mapping[str, Any]) -> Caller:
    """The caller of a request's ASGI scope, as the gateway left it; without one, NOBODY."""
    caller: Caller = scope.get(_SCOPE, NOBODY)
    return caller


def called_by(caller: Caller) -> dict[str, Caller]:
    """What to add to a scope, for `caller_of`."""
    return {_SCOPE: caller}
