"""Which arm of an experiment answers which unit: a hash, the same in every process and after it.

Every arm draws a number by GrowthBook's published hash (its version 2) of salt, arm and unit, and
the shortest waiting time at the rate of the arm's weight wins. GrowthBook itself draws one number
and cuts the interval into ranges, which shift each other: of three equal arms, removing the first
would move half of the units. Here a unit moves to an arm that gained weight relative to its own, or
from one that lost it, and never otherwise, so that two arms, one more arm or one less move exactly
what the weights say. With several changes at once no assignment without a memory does better for
all weights (Moulton and Jiang, "Maximally Consistent Sampling", 2018); one with a memory would
differ between servers that saw different updates. All 32 bits of the hash count: GrowthBook's
10,000 steps would tie arms, and give one of little weight a share in steps.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping
from typing import NamedTuple

from stacked.config import ExperimentConfig

_BASIS, _PRIME, _MASK = 0x811C9DC5, 0x01000193, 0xFFFFFFFF
# Longer units are hashed before: anyone may send one, and each byte costs time for every arm.
_LONGEST = 128


class Exposure(NamedTuple):
    """What one request got of an experiment."""

    experiment: str
    """The experiment's key."""
    phase: str
    """Within one, a unit has one arm, and an arm one content."""
    arm: str
    """The arm's key."""
    unit: str | None
    """The unit's pseudonym; None: the request had none, and its arm was drawn by chance."""


class Arm(NamedTuple):
    """One arm in one phase: its part of the units, and the content it has."""

    key: str
    share: float
    digest: str


def fnv1a32(data: bytes, state: int = _BASIS) -> int:
    """FNV-1a of 32 bits. `state`: the hash of what stands before `data`."""
    for byte in data:
        state = (state ^ byte) * _PRIME & _MASK
    return state


def mixed(state: int, unit: bytes) -> int:
    """GrowthBook's hash before it is cut to 10,000 steps. `state`: the FNV-1a of the seed."""
    return fnv1a32(b"%d" % fnv1a32(unit, state))


class Split:
    """The assignment of one experiment to those of its arms that are served, one at least."""

    __slots__ = ("_arms", "_pseudonyms", "experiment", "phase", "shares")

    def __init__(self, experiment: ExperimentConfig, digests: Mapping[str, str]) -> None:
        """`digests`: what each served arm is made of, by its key.

        The units of arms that are not served are shared by the others, whose own units stay.
        """
        served = [arm for arm in experiment.arms if arm.key in digests]
        total = sum(arm.weight for arm in served) or 1.0
        shares = {arm.key: arm.weight / total for arm in served if arm.weight / total}
        shares = shares or {served[0].key: 1.0}
        salt = experiment.salt or experiment.key
        self.experiment = experiment
        self.shares: Mapping[str, float] = shares
        """Each arm's share of the units, by its key."""
        self._arms = [
            (fnv1a32(_bytes(f"{salt}\0{key}\0")), share, key) for key, share in shares.items()
        ]
        arms = sorted((key, digests[key], share) for key, share in shares.items())
        facts = json.dumps([experiment.unit, salt, arms]).encode()
        self.phase = hashlib.blake2b(facts, digest_size=6).hexdigest()
        key = hashlib.blake2b(_bytes(salt), digest_size=32).digest()
        self._pseudonyms = hashlib.blake2b(key=key, digest_size=8)

    def arm(self, unit: str | None) -> str:
        """The key of a unit's arm; of None: one by chance."""
        if len(self._arms) == 1:
            return self._arms[0][2]
        if unit is None:
            return random.choices([*self.shares], [*self.shares.values()])[0]
        raw = _bytes(unit)
        if len(raw) > _LONGEST:
            raw = hashlib.sha256(raw).hexdigest().encode()
        best, winner = math.inf, self._arms[0][2]
        for state, share, key in self._arms:
            # The middle of the hash's step, as 0 has no logarithm.
            time = -math.log((mixed(state, raw) + 0.5) / 2**32) / share
            if time < best:
                best, winner = time, key
        return winner

    def pseudonym(self, unit: str) -> str:
        """What stands for a unit in records: it may be a person's name.

        Keyed by the salt, so that who knows the salt can try names.
        """
        named = self._pseudonyms.copy()
        named.update(_bytes(unit))
        return named.hexdigest()


def _bytes(text: str) -> bytes:
    # JSON can carry half of a surrogate pair.
    return text.encode(errors="surrogatepass")
