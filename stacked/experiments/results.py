"""What a phase of an experiment says of each metric: values, and one sentence made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from stacked.experiments.statistics import (
    ALPHA,
    LEAST_UNITS,
    Interval,
    Sample,
    difference,
    mean_of,
    steadied,
    units_needed,
)

# Of what the server measures: those of which less is better; of the others, more.
LESS_IS_BETTER = frozenset({"error", "seconds", "first_seconds", "length"})
# An answer is not better for being long or short.
NEUTRAL = frozenset({"output_tokens"})


class Verdict(Enum):
    """What is known of an arm next to the first one."""

    FEW = "few"  # one of the two has too few units
    OPEN = "open"  # the bounds include no difference
    BETTER = "better"
    WORSE = "worse"
    DIFFERENT = "different"  # more or less, of what is neither good nor bad


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One metric of one arm: its mean by unit with its bounds, and how it differs from the first.

    `units_needed`: at how many units of the two the difference of now would be certain; None: at
    none that is worth waiting for, or it is.
    """

    arm: str
    units: int
    mean: float | None
    bounds: Interval | None
    difference: Interval | None = None
    verdict: Verdict | None = None
    units_needed: int | None = None


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One metric of every arm, the first of which is what the others are compared with.

    `alpha`: the probability that any of the differences from it is ever said wrongly.
    """

    metric: str
    share: bool
    """Whether every value is 0 or 1."""
    lower_is_better: bool | None
    """None: neither is."""
    arms: tuple[ArmResult, ...]
    alpha: float = ALPHA


def result_of(
    metric: str, arms: Sequence[str], samples: Sequence[Sample], *, share: bool, lower: bool
) -> MetricResult:
    """`lower`: less of a metric of feedback is better."""
    steady = steadied(samples, share=share)
    control, others = steady[0], steady[1:]
    less = None if metric in NEUTRAL else lower or metric in LESS_IS_BETTER
    each = [_alone(arms[0], control, share)]
    for arm, sample in zip(arms[1:], others, strict=True):
        alpha = ALPHA / len(others)
        found = difference(control, sample, alpha)
        if found is not None and share:
            found = _within(found, -1.0, 1.0)
        verdict = _verdict(found, less)
        needed = units_needed(control, sample, alpha) if verdict is Verdict.OPEN else None
        alone = _alone(arm, sample, share)
        each.append(ArmResult(arm, alone.units, alone.mean, alone.bounds, found, verdict, needed))
    return MetricResult(metric, share, less, tuple(each))


def _alone(arm: str, sample: Sample, share: bool) -> ArmResult:
    bounds = mean_of(sample)
    if bounds is not None and share:
        bounds = _within(bounds, 0.0, 1.0)
    return ArmResult(arm, sample.units, sample.mean if sample.units else None, bounds)


def _within(found: Interval, least: float, most: float) -> Interval:
    """The bounds, where nothing beyond these is possible."""
    return found._replace(low=max(found.low, least), high=min(found.high, most))


def _verdict(found: Interval | None, less: bool | None) -> Verdict:
    if found is None:
        return Verdict.FEW
    if not found.excludes_zero:
        return Verdict.OPEN
    if less is None:
        return Verdict.DIFFERENT
    return Verdict.WORSE if (found.value > 0) == less else Verdict.BETTER


# -- sentences ----------------------------------------------------------------------------------


def sentences(result: MetricResult, units_per_second: float | None) -> list[str]:
    """A sentence for each arm but the first: which is better, by how much, how sure, or how much
    longer that takes. `units_per_second`: at what rate new units come, if they still do.
    """
    control, others = result.arms[0], result.arms[1:]
    if not any(arm.units for arm in result.arms):
        return [f"No unit has {result.metric!r} yet."]
    return [_sentence(result, control, arm, units_per_second) for arm in others] or [
        f"{control.arm} is the only arm, so there is nothing to compare it with."
    ]


def _sentence(result: MetricResult, control: ArmResult, arm: ArmResult, rate: float | None) -> str:
    found, name = arm.difference, result.metric
    if found is None:
        fewest = min(control, arm, key=lambda one: one.units)
        return (
            f"Too early to compare {arm.arm} with {control.arm}: {fewest.arm} has {fewest.units} "
            f"units with {name!r}, and {LEAST_UNITS} are the least."
        )
    sure = f"{1 - result.alpha:.0%} sure, however often you look"
    means = f"{shown(arm.mean, result)} against {shown(control.mean, result)}"
    if arm.verdict is not Verdict.OPEN:
        said = {Verdict.BETTER: "is better than", Verdict.WORSE: "is worse than"}
        near, far = sorted((abs(found.low), abs(found.high)))
        return (
            f"{arm.arm} {said.get(arm.verdict or Verdict.OPEN, 'differs from')} {control.arm}: "
            f"{name!r} is {_more(found.value, result)} ({means}), by at least "
            f"{_amount(near, result)} and at most {_amount(far, result)}; {sure}."
        )
    return (
        f"Whether {arm.arm} {_relation(result)} {control.arm} is open: {name!r} is "
        f"{_more(found.value, result)} so far ({means}), and what is certain is between "
        f"{_more(found.low, result)} and {_more(found.high, result)}. {_longer(control, arm, rate)}"
    )


def _relation(result: MetricResult) -> str:
    return "differs from" if result.lower_is_better is None else "is better than"


def _longer(control: ArmResult, arm: ArmResult, rate: float | None) -> str:
    if arm.units_needed is None:
        return "At this difference no number of units would decide it: the two hardly differ."
    more = max(1, arm.units_needed - control.units - arm.units)
    time = f", in about {_duration(more / rate)} at the rate so far" if rate else ""
    return f"If that is the difference, about {more:,} more units decide it{time}."


def shown(value: float | None, result: MetricResult) -> str:
    """A value of a metric as people read it."""
    if value is None:
        return "-"
    return (
        f"{value:.1%}" if result.share else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    )


def _more(value: float, result: MetricResult) -> str:
    return f"{_amount(abs(value), result)} {'higher' if value >= 0 else 'lower'}"


def _amount(value: float, result: MetricResult) -> str:
    """A difference, which of shares is one of percentage points."""
    return f"{value * 100:.1f} points" if result.share else shown(value, result)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{max(1, round(seconds))} seconds"
