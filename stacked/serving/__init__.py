"""What serves one deployment: an engine with its live group, and how requests reach it.

`Serving` is all that the rest of the product needs of one; vLLM's is `vllm.VllmServing`. It must
not know FastAPI, records or where a group came from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple, Protocol

from stacked.core import Digest
from stacked.engine.openai import Report as Report
from stacked.engine.processes import Ended
from stacked.groups.leases import Lease
from stacked.groups.routing import Route
from stacked.live import Live
from stacked.serving.targets import Target

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Admission(NamedTuple):
    """What one request got at admission; nothing is looked up for it afterwards."""

    route: Route[Any]
    lease: Lease
    """To be released when it has ended."""
    answer: Callable[[Receive, Send, Report], Awaitable[None]]
    """Has the model answer. `receive` is what follows the request's body."""
    sequences: int
    """How many the engine gets for it."""


class Serving(Protocol):
    """A running engine and its live group. `await close()` ends it."""

    live: Live[Any]
    app: Any
    """The ASGI app of what runs no model: lists, metrics, pages."""

    in_flight: frozenset[Digest | None] | None
    """What had requests when the engine died; None if no request has met its death."""

    @property
    def dead(self) -> bool:
        """Whether the engine is gone."""

    def check_alive(self) -> None:
        """Raises EngineDead."""

    async def step(self) -> None:
        """Return when the engine has made another step. Raises EngineDead."""

    def kill(self) -> None:
        """End an engine that answers no more."""

    async def bury(self) -> Ended:
        """End what is left of a dead engine, and say how it ended."""

    def admit(
        self, target: Target, scope: Scope, body: bytes, end: Callable[..., object]
    ) -> Admission:
        """Find the model that a request means, and lease it.

        `end` ends the request at once, with the error that it may be given.

        Synchronous: nothing comes between the look into the routing table and the lease. Raises
        RoutingError, RequestError.
        """

    async def note_residency(self) -> None:
        """Have the metrics show where each adapter is; as before if that is not known soon."""

    async def close(self) -> None: ...
