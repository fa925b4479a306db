"""What part of the engine each flow of requests is entitled to, among those that are active."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """Whose requests they are. A caller's share is divided between the keys that it uses.

    `batch`: requests that may wait. `urgent`: the server's own, which do not wait their turn.
    `background`: the server's own, which clients' tokens are not to wait for.
    """

    caller: str = ""
    key: str = ""
    caller_weight: float = 1.0
    key_weight: float = 1.0
    batch: bool = False
    urgent: bool = False
    background: bool = False


class Shares:
    """The active flows, as a tree: class, caller, key. Each node is divided by weight."""

    def __init__(self, batch_share: float) -> None:
        """`batch_share`: the part of batch requests while others wait."""
        self._batch_share = batch_share
        self._active: dict[Hashable, tuple[float, int]] = {}
        """The sum of the weights of a node's active children, and their number."""

        self._count = 0

    def __len__(self) -> int:
        """How many flows are active."""
        return self._count

    def begin(self, share: Share) -> None:
        """A flow has become active. Follow with `end`."""
        self._count += 1
        for node, weight in self._levels(share):
            total, count = self._active.get(node, (0.0, 0))
            self._active[node] = total + weight, count + 1
            if count:
                return

    def end(self, share: Share) -> None:
        self._count -= 1
        for node, weight in self._levels(share):
            total, count = self._active.pop(node)
            if count > 1:
                self._active[node] = total - weight, count - 1
                return

    def of(self, share: Share) -> float:
        """The part, above 0 and at most 1, of an active flow."""
        part = 1.0
        for node, weight in self._levels(share):
            part *= weight / self._active[node][0]
        return part

    def _levels(self, share: Share) -> tuple[tuple[Hashable, float], ...]:
        """From the leaf up: the parent node, and the weight of the child in it."""
        caller = (share.batch, share.caller, share.caller_weight)
        group = self._batch_share if share.batch else 1.0 - self._batch_share
        return (
            (caller, share.key_weight),
            (share.batch, share.caller_weight),
            (None, group),
        )
