"""Which replicas a request for a key should go to, the best first. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

# A replica with more than its part of all requests, and this much more, is passed over: a lower
# bound moves keys for every fluctuation, a higher one lets one popular key fill its replicas.
_BOUND = 1.25


class Replica(NamedTuple):
    """What is known of a replica where requests are sent from; a new one has said nothing yet."""

    id: str
    load: int = 0
    """Requests that it has."""
    ready: bool = True
    crowded: bool = False
    """Whether its group has more adapters than the engine has slots."""
    lacks: frozenset[str] = frozenset()
    """Keys whose adapter its engine has not."""


def ranked(key: str | None, replicas: Sequence[Replica], copies: int) -> list[list[str]]:
    """All replicas, in lists: whoever is free in the first, or else in the next.

    Those with the whole adapter come before those without, and those that serve nothing now are
    last. Where groups are larger than their slots, a key is always sent to the same `copies`
    replicas, so that its adapter stays in a slot there; not to those with more than their part.
    """
    ready = [each for each in replicas if each.ready]
    whole = [each for each in ready if key not in each.lacks]
    lists = [whole]
    if key is not None and any(each.crowded for each in whole):
        lists = _placed(key, whole, copies)
    lists += [[each for each in ready if key in each.lacks]]
    lists += [[each for each in replicas if not each.ready]]
    return [[each.id for each in some] for some in lists if some]


def _placed(key: str, replicas: Sequence[Replica], copies: int) -> list[list[Replica]]:
    by_id = {each.id: each for each in replicas}
    most = math.ceil(_BOUND * (sum(each.load for each in replicas) + 1) / len(replicas))
    order = [by_id[id] for id in _order(key, tuple(sorted(by_id)))]
    chosen = [each for each in order if each.load < most][:copies]
    return [chosen, [each for each in order if each not in chosen]]


@lru_cache(maxsize=4096)
def _order(key: str, ids: tuple[str, ...]) -> tuple[str, ...]:
    """By rendezvous hashing: one replica more or less moves only its own part of the keys."""
    return tuple(sorted(ids, key=lambda id: blake2b(f"{key}\0{id}".encode()).digest()))
