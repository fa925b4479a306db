"""Many experiments at once, looked at after every answer; `python -m tests.experiments.simulated`
prints the tables of docs/experiments.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from stacked.experiments import statistics
from stacked.experiments.statistics import ALPHA, LEAST_UNITS, half_width

Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]
"""What answers get: a generator and whether each is of the second arm -> their values."""
RUNS = 2000


def binary(rate: float, effect: float = 0.0) -> Draw:
    return lambda random, arm: (random.random(len(arm)) < rate + effect * arm).astype(float)


def normal(effect: float = 0.0, spread: float = 1.0) -> Draw:
    """`spread`: the second arm's standard deviation; the first one's is 1."""
    return lambda random, arm: (
        effect * arm + random.normal(size=len(arm)) * np.where(arm, spread, 1.0)
    )


def skewed(random: np.random.Generator, arm: np.ndarray) -> np.ndarray:
    """As seconds are: lognormal, a tenth of them three times the mean or more."""
    return random.lognormal(size=len(arm))


class Looks(NamedTuple):
    """Of each run: whether bounds ever left the true difference out, and ever zero, and when."""

    missed: np.ndarray
    decided: np.ndarray
    units: np.ndarray
    """At which number of units zero was first left out; that of all where it never was."""


def simulate(
    draw: Draw,
    answers: int,
    *,
    effect: float = 0.0,
    share: float = 0.5,
    returning: float = 0.0,
    runs: int = RUNS,
    seed: int = 15,
) -> Looks:
    """Runs of so many answers, with a look after each.

    `share`: of units in the second arm. `returning`: of answers that go to a unit which had one
    before; units differ as much as the answers of one do.
    """
    random = np.random.default_rng(seed)
    everyone = np.arange(runs)
    # By arm and run: units, the sum of their means and of their squares.
    sums = np.zeros((3, 2, runs))
    arm_of = np.zeros((runs, answers), bool)
    own, total, count = (np.zeros((runs, answers)) for _ in range(3))
    there = np.zeros(runs, int)
    missed, decided = np.zeros(runs, bool), np.zeros(runs, bool)
    units = np.full(runs, answers)
    for _ in range(answers):
        new = (random.random(runs) >= returning) | (there == 0)
        who = np.where(new, there, random.integers(0, np.maximum(there, 1)))
        arm_of[everyone[new], who[new]] = random.random(new.sum()) < share
        own[everyone[new], who[new]] = random.normal(size=new.sum()) * (returning > 0)
        there += new
        arm = arm_of[everyone, who]
        before = total[everyone, who] / np.maximum(count[everyone, who], 1)
        total[everyone, who] += draw(random, arm) + own[everyone, who]
        count[everyone, who] += 1
        now = total[everyone, who] / count[everyone, who]
        at = arm.astype(int)
        sums[0, at, everyone] += new
        sums[1, at, everyone] += now - np.where(new, 0, before)
        sums[2, at, everyone] += now**2 - np.where(new, 0, before**2)
        value, half = bounds(*sums)
        decided_now = (np.abs(value) > half) & ~decided
        units[decided_now] = there[decided_now]
        decided |= decided_now
        missed |= np.abs(value - effect) > half
    return Looks(missed, decided, units)


def bounds(
    units: np.ndarray, total: np.ndarray, squares: np.ndarray, alpha: float = ALPHA
) -> tuple[np.ndarray, np.ndarray]:
    """`difference` of `steadied` arms for many runs: the estimates, and half the widths.

    Each argument has a row for each of the two arms.
    """
    mean = total / np.maximum(units, 1)
    variance = np.maximum(squares - units * mean**2, 0) / np.maximum(units - 1, 1)
    both = units.sum(0)
    center = total.sum(0) / np.maximum(both, 1)
    within = (np.maximum(units - 1, 0) * variance + units * (mean - center) ** 2).sum(0)
    pooled = within / np.maximum(both - 1, 1)
    more = statistics._POOLED_UNITS
    variance = np.maximum(variance, (units * variance + more * pooled) / (units + more))
    of_one = both * (variance / np.maximum(units, 1)).sum(0)
    widths = {n: half_width(1.0, int(n), alpha) for n in np.unique(both) if n}
    half = np.sqrt(of_one) * np.array([widths.get(n, np.inf) for n in both])
    return mean[1] - mean[0], np.where(units.min(0) < LEAST_UNITS, np.inf, half)


ALIKE: dict[str, tuple[Draw, float, float]] = {
    "correct in half of the answers": (binary(0.5), 0.5, 0.0),
    "correct in 5 %": (binary(0.05), 0.5, 0.0),
    "correct in 5 %, shares 90/10": (binary(0.05), 0.1, 0.0),
    "correct in 1 %, shares 90/10": (binary(0.01), 0.1, 0.0),
    "normal": (normal(), 0.5, 0.0),
    "normal, spreads 1 and 3, shares 90/10": (normal(spread=3.0), 0.1, 0.0),
    "lognormal, as seconds": (skewed, 0.5, 0.0),
    "lognormal, shares 90/10": (skewed, 0.1, 0.0),
    "normal, 4 of 5 answers to a unit seen before": (normal(), 0.5, 0.8),
}
"""A/A experiments: what answers get, the second arm's share, and how many units return."""

KNOWN: dict[str, tuple[Draw, float, float]] = {
    "50 % correct against 80 %": (binary(0.5, 0.3), 0.3, 0.25),
    "50 % correct against 70 %": (binary(0.5, 0.2), 0.2, 0.25),
    "50 % correct against 60 %": (binary(0.5, 0.1), 0.1, 0.25),
    "80 % correct against 85 %": (binary(0.8, 0.05), 0.05, 0.16),
    "half a standard deviation": (normal(0.5), 0.5, 1.0),
    "a fifth of a standard deviation": (normal(0.2), 0.2, 1.0),
}
"""Known effects: what answers get, the effect, and the first arm's variance."""


def fixed_units(effect: float, control: float, arm: float) -> int:
    """What one look at a fixed number of units needs for 80 % power at 5 %."""
    z = 1.959964 + 0.841621
    return 2 * int(np.ceil(z**2 * (control + arm) / effect**2))


def main(answers: int) -> None:
    print(f"| Two arms that do not differ, {RUNS:,} runs | rejected |\n| --- | --- |")
    for name, (draw, share, returning) in ALIKE.items():
        looks = simulate(draw, answers, share=share, returning=returning)
        print(f"| {name} | {looks.decided.mean():.1%} |", flush=True)
    print("\n| Effect | planned, one look | 50 % | 80 % | 90 % | left out |\n|" + " --- |" * 6)
    for name, (draw, effect, variance) in KNOWN.items():
        rate = 0.5 if variance == 0.25 else 0.8
        arm = variance if variance == 1 else (rate + effect) * (1 - rate - effect)
        planned = fixed_units(effect, variance, arm)
        looks = simulate(draw, 5 * planned, effect=effect)
        at = [int(np.quantile(looks.units, part)) for part in (0.5, 0.8, 0.9)]
        shown = " | ".join(f"{each:,}" for each in at)
        print(f"| {name} | {planned:,} | {shown} | {looks.missed.mean():.1%} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
