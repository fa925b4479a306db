"""How two arms of an experiment differ, with bounds that hold however often somebody looks.

The bounds are the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas
(Time-uniform central limit theory and asymptotic confidence sequences, 2024, theorem 2.2), which
GrowthBook's sequential tests use too. The shares of the arms are compared by the sequential
multinomial test of Lindon and Malek (Anytime-valid inference for multinomial count data, 2022).
An observation is a unit: the mean of what its answers got, so that a busy one counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, lgamma, log, sqrt
from typing import NamedTuple

ALPHA = 0.05
"""How often, at most, two arms that do not differ are ever said to differ."""

TUNED_TO = 1000
"""At so many units of two arms the bounds are narrowest, relative to what one look would give. It
is fixed: bounds that are tuned to what was seen would not hold."""

LEAST_UNITS = 25
"""Of each arm, before there are bounds."""

# As many units of all arms count in with the variance of each: a rare outcome is not seen among a
# small arm's first units, which would then seem to have no variance at all.
_POOLED_UNITS = 200

MISMATCH = 0.001
"""Below this, the numbers of units contradict the weights."""

# More than any experiment will have; whoever needs as many has no difference to find.
_MOST_UNITS = 10**9


class Sample(NamedTuple):
    """One metric of one arm, by unit: how many units have it, their mean and variance."""

    units: int
    mean: float
    variance: float


class Interval(NamedTuple):
    """An estimate, and the bounds that hold at every look with a probability of `1 - alpha`."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def steadied(arms: Sequence[Sample], *, share: bool = False) -> list[Sample]:
    """The arms, each with a variance that few units do not make too small; never a smaller one.

    `share`: every value is 0 or 1, and what no unit had so far may still come.
    """
    units = sum(arm.units for arm in arms)
    if units < 2:
        return list(arms)
    mean = sum(arm.units * arm.mean for arm in arms) / units
    pooled = sum(
        max(arm.units - 1, 0) * arm.variance + arm.units * (arm.mean - mean) ** 2 for arm in arms
    ) / (units - 1)
    if share:
        rate = (units * mean + 1) / (units + 2)
        pooled = max(pooled, rate * (1 - rate))
    return [
        arm._replace(
            variance=max(
                arm.variance,
                (arm.units * arm.variance + _POOLED_UNITS * pooled) / (arm.units + _POOLED_UNITS),
            )
        )
        for arm in arms
    ]


def mean_of(sample: Sample, alpha: float = ALPHA) -> Interval | None:
    """An arm's mean; None before there are `LEAST_UNITS`."""
    if sample.units < LEAST_UNITS:
        return None
    return _around(sample.mean, half_width(sample.variance, sample.units, alpha))


def difference(control: Sample, arm: Sample, alpha: float = ALPHA) -> Interval | None:
    """By how much an arm's mean is above the control's; None before there are `LEAST_UNITS`.

    `alpha` is the share of this comparison, where several are made.
    """
    if min(control.units, arm.units) < LEAST_UNITS:
        return None
    units = control.units + arm.units
    return _around(arm.mean - control.mean, half_width(_variance(control, arm), units, alpha))


def units_needed(control: Sample, arm: Sample, alpha: float = ALPHA) -> int | None:
    """At how many units of the two the bounds of the difference of now would exclude zero.

    The shares of the arms and the variance are those of now. None: at no number worth waiting for.
    """
    effect, variance = abs(arm.mean - control.mean), _variance(control, arm)
    low, high = 2 * LEAST_UNITS, _MOST_UNITS
    if effect == 0 or half_width(variance, high, alpha) >= effect:
        return None
    while low < high:  # the width only shrinks
        middle = (low + high) // 2
        if half_width(variance, middle, alpha) < effect:
            high = middle
        else:
            low = middle + 1
    return low


def half_width(variance: float, units: int, alpha: float) -> float:
    """Half the width of the bounds of a mean of so many observations of this variance."""
    tuning = -2 * log(alpha)
    t = units * (tuning + log(tuning + 1)) / TUNED_TO
    return sqrt(variance / units * 2 * (t + 1) / t * log(sqrt(t + 1) / alpha))


def mismatch(units: Sequence[int], weights: Sequence[float]) -> float:
    """How probable numbers of units as far from the weights are at any look: a p-value.

    Below `MISMATCH`, something else than the weights decides who gets which arm, and the arms
    cannot be compared.
    """
    total, whole = sum(units), sum(weights)
    expected = [(count, weight / whole) for count, weight in zip(units, weights, strict=True)]
    if any(count and not share for count, share in expected):
        return 0.0
    # The prior for the shares that there may be instead, about as wide as the bounds are tuned.
    prior = TUNED_TO / 10
    evidence = lgamma(prior) - lgamma(prior + total)
    for count, share in expected:
        if share:
            evidence += lgamma(prior * share + count) - lgamma(prior * share) - count * log(share)
    return exp(-max(evidence, 0.0))


def _variance(control: Sample, arm: Sample) -> float:
    """Of one observation, so that the variance of the difference is this by their number."""
    units = control.units + arm.units
    return units * (control.variance / control.units + arm.variance / arm.units)


def _around(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half)
