"""What serves one deployment: an engine with its live group, and how requests reach it.

`Serving` is all that the rest of the product needs of one; `vllm.VllmServing` is that of adapters,
`models.ModelsServing` that of other models. It must not know FastAPI, records or where a group came
from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from stacked.config import Design
from stacked.core import Digest, Handle, Member, ModelGroup
from stacked.engine.loaded import Resident
from stacked.engine.openai import Report as Report
from stacked.engine.processes import Ended
from stacked.errors import StackedError
from stacked.groups.leases import Lease
from stacked.groups.routing import Route, Routing
from stacked.live import Live
from stacked.serving.settings import ServingSettings
from stacked.serving.targets import Target

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

H = TypeVar("H", bound=Handle)

Commit = Callable[[], Awaitable[int]]
"""Makes a group durable; its generation."""

NO_VLLM = (
    "what is deployed here are models that vLLM does not serve; send requests to /predict, with "
    "the inference key in the header model-key"
)
NO_TENSORS = (
    "what is deployed here are language models, which take no tensors; send prompts to /predict or "
    "/v1/completions"
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is decided before a group is served."""

    group: ModelGroup
    settings: ServingSettings
    withheld: Mapping[Member, str] = field(default_factory=dict, kw_only=True)
    """Members that are not loaded at the start: why they are quarantined, "" if they are not."""

    @property
    def loaded(self) -> ModelGroup:
        """The group without what is withheld."""
        rest = tuple(member for member in self.group.members if member not in self.withheld)
        return replace(self.group, members=rest)

    def begin(self, live: Live[H], handles: Mapping[Digest, H], generation: int) -> None:
        """Serve the group, whose contents these are."""
        group, out = self.loaded, self.quarantined
        design = Design.of(group.metadata)
        routing = Routing.of(
            group.base, group.members, handles, generation, withheld=out, design=design
        )
        live.begin(routing, self.group.members)

    @property
    def quarantined(self) -> Mapping[str, str]:
        """The names of what is quarantined, and why: key or model id -> why."""
        whys = [(member, why) for member, why in self.withheld.items() if why]
        return {name: why for m, why in whys for name in (m.key, m.model_id) if name is not None}

    def without(self, quarantined: Mapping[str, str]) -> Self:
        """The same without these models: model id -> why."""
        whys = {m: quarantined[m.model_id] for m in self.group if m.model_id in quarantined}
        return replace(self, withheld=whys)


def raise_first(group: ModelGroup, failed: Mapping[Digest, StackedError]) -> None:
    """Raise the first of these errors with the names of its members before the sentence."""
    for digest, error in failed.items():
        names = ", ".join(m.label for m in group if m.content.digest == digest)
        more = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
        refused = type(error)(f"{names}: {error}{more}")
        refused.suspects = frozenset({digest})
        raise refused from error


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
    """A running engine and its live group. `await close()` ends it.

    What is defined here is that of an engine which heals itself.
    """

    live: Live[Any]
    settings: ServingSettings
    in_flight: frozenset[Digest | None] | None = None
    """What had requests when the engine died; None if no request has met its death."""
    suspects: frozenset[Digest] = frozenset()
    """What a start in its place has died with: the next one loads it last, one by one."""

    @property
    def app(self) -> Any:
        """The ASGI app of what runs no model: lists, metrics, pages."""

    @property
    def cards(self) -> int | None:
        """How many GPUs models may be pinned to, by their numbers from 0; None if not known."""
        return None

    @property
    def dead(self) -> bool:
        """Whether the engine is gone."""
        return False

    def check_alive(self) -> None:
        """Raises EngineDead."""

    def check_ready(self, route: Route[Any]) -> None:
        """Raises NotReady while this model cannot answer."""

    async def step(self) -> None:
        """Return when the engine has made another step. Raises EngineDead."""

    def kill(self) -> None:
        """End an engine that answers no more."""

    async def bury(self) -> Ended:
        """End what is left of a dead engine, and say how it ended."""
        await self.close()
        return Ended()

    def admit(
        self, target: Target, scope: Scope, body: bytes, end: Callable[..., object]
    ) -> Admission:
        """Find the model that a request means, and lease it.

        `end` ends the request at once, with the error that it may be given.

        Synchronous: nothing comes between the look into the routing table and the lease. Raises
        RoutingError, RequestError.
        """

    async def resident(self) -> Resident:
        """Which contents the engine holds, and where. Raises EngineError."""

    async def close(self) -> None: ...
