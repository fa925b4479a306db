"""What an engine holds: its handles of adapters, and where each adapter is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stacked.core import Adapter, Digest

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

    from stacked.engine.chat import AdapterChat

# A start reads and builds this many in one call, so that the next ones are read meanwhile; fewer
# if they are so large that a slow disk would need longer than CALL_SECONDS.
_LOADED_AT_ONCE = 16
_BYTES_AT_ONCE = 1024**3


@dataclass(frozen=True, slots=True)
class Loaded:
    """The engine's handle of one adapter: `name` carries the digest, `number` is used once.

    `chat` is how its chats become prompts, None if as the base's do.
    """

    digest: Digest
    name: str
    number: int
    request: LoRARequest
    chat: AdapterChat | None = field(default=None, compare=False)

    @property
    def stored(self) -> frozenset[Digest]:
        """See `stacked.core.Handle`."""
        return frozenset({self.digest})


@dataclass(frozen=True, slots=True)
class Resident:
    """Which adapters the engine holds, by number, and where; a free one is None in `slots`."""

    staged: frozenset[int]
    host: frozenset[int]
    slots: tuple[int | None, ...]
    sizes: Mapping[int, int] = field(default_factory=dict)
    """The bytes of those whose memory was measured."""

    @classmethod
    def of(cls, workers: Sequence[Sequence[Sequence[int]]]) -> Resident:
        """What several workers hold together, each with its own `Commands.resident`."""
        staged, host, slots = zip(*workers, strict=True)
        active = {*slots[0]}.intersection(*slots) - {0}
        return cls(
            staged=frozenset[int]().union(*staged),
            host=frozenset[int](host[0]).intersection(*host),
            slots=tuple(number if number in active else None for number in slots[0]),
        )


def batches(adapters: Sequence[Adapter], alone: Collection[Digest]) -> Iterator[list[Adapter]]:
    """What a start loads in one call each."""
    largest = max((adapter.bytes for adapter in adapters), default=0)
    count = max(1, min(_LOADED_AT_ONCE, _BYTES_AT_ONCE // max(1, largest)))
    together = [adapter for adapter in adapters if adapter.digest not in alone]
    for at in range(0, len(together), count):
        yield together[at : at + count]
    yield from ([adapter] for adapter in adapters if adapter.digest in alone)
