"""How sure a mean score is, and a mean difference of two models on the same examples.

A mean has Wilson's interval: for scores between 0 and 1 it is never too narrow because of their
kind, as scores of 0 and 1 vary the most. A difference has a bootstrap of pairs. Its bound never
falls where a score rises, which a t interval does not have: there, one more right answer can turn
"not worse" into "perhaps worse". The percentile is that of Hesterberg's expanded interval ("What
Teachers Should Know About the Bootstrap", 2015), without which few examples look too sure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

# A bound is then drawn to a thirtieth of the mean's standard error.
_RESAMPLES = 4000
# Draws whose counts are in memory at once.
_AT_ONCE = 500


class Interval(NamedTuple):
    """An estimate between two bounds."""

    low: float
    mean: float
    high: float


def mean_of(scores: Sequence[float], confidence: float = 0.95) -> Interval:
    """A mean score and its two-sided interval; of scores that leave 0 to 1, a bootstrap's."""
    mean = math.fsum(scores) / len(scores)
    if min(scores) < 0 or max(scores) > 1:
        tail = (1 - confidence) / 2
        return Interval(*_between(scores, tail, mean))
    z, n = NormalDist().inv_cdf((1 + confidence) / 2), len(scores)
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Interval(max(0.0, centre - half), mean, min(1.0, centre + half))


def difference(
    candidate: Sequence[float], served: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Candidate minus served, by pairs of scores. Each bound is one-sided, with `confidence`."""
    pairs = [mine - theirs for mine, theirs in zip(candidate, served, strict=True)]
    return Interval(*_between(pairs, 1 - confidence, math.fsum(pairs) / len(pairs)))


def _between(values: Sequence[float], tail: float, mean: float) -> tuple[float, float, float]:
    """The percentiles of resampled means at `tail` from both ends, and the mean between."""
    n, spread = len(values), max(values) - min(values)
    if not spread:
        return mean, mean, mean
    # The same draws for every two sets of a size: a score that rises can lower none of the means.
    rng, column = np.random.default_rng(0), np.asarray(values, dtype=float)
    drawn = [
        column[rng.integers(0, n, size=(_AT_ONCE, n))].mean(axis=1)
        for _ in range(_RESAMPLES // _AT_ONCE)
    ]
    widened: float = NormalDist().cdf(-math.sqrt(n / (n - 1)) * _student(1 - tail, n - 1))
    low, high = np.quantile(np.concatenate(drawn), [widened, 1 - widened])
    return float(low), mean, float(high)


def _student(confidence: float, freedom: int) -> float:
    """A quantile of Student's distribution, by its expansion around the normal one."""
    z = NormalDist().inv_cdf(confidence)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))
