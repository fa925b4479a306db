"""Feedback for answers of experiments, and what it and the answers themselves say of the arms."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Self

from fastapi import APIRouter, Body, Query, Request
from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictBool, Tag, model_validator

from stacked.api.control.base import Moment, ResponseModel
from stacked.api.control.calls import ModelName, Served, success
from stacked.callers import Caller, caller_of
from stacked.config import Key
from stacked.errors import EngineDead, FeedbackUnknown, NotReady, RecordAbsent, StackedError
from stacked.experiments.assignment import Exposure
from stacked.experiments.results import MetricResult, Verdict, result_of, sentences
from stacked.experiments.statistics import MISMATCH, mismatch
from stacked.outcomes import of_answer, of_unit
from stacked.registry.outcomes import SHARES, Phase, Recorded, Value
from stacked.registry.records import now
from stacked.service import Service
from stacked.serving.targets import FEEDBACK

_MOST_ITEMS = 1000

router = APIRouter(tags=["Experiments"], generate_unique_id_function=lambda route: route.name)


# -- feedback -----------------------------------------------------------------------------------

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e12, le=1e12)]


class FeedbackItem(BaseModel):
    """One value: for an answer by its id, or for a unit of an experiment.

    The id is the `opc-request-id` of the answer, or the `id` in the body of a completion or chat.
    The same id (or unit) and metric again replace the value.
    """

    model_config = ConfigDict(extra="forbid")

    id: str | None = Field(default=None, min_length=1, max_length=300)
    experiment: Key | None = None
    unit: str | None = Field(default=None, min_length=1, max_length=4096)
    metric: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")
    value: StrictBool | _Number

    @model_validator(mode="after")
    def _is_for_one_thing(self) -> Self:
        of_unit = (self.experiment is not None, self.unit is not None)
        if of_unit != ((self.id is None,) * 2):
            raise ValueError("name an id, or an experiment and a unit of it")
        return self


class FeedbackItems(BaseModel):
    """Several at once, each of which is stored or refused by itself."""

    model_config = ConfigDict(extra="forbid")

    items: list[FeedbackItem] = Field(min_length=1, max_length=_MOST_ITEMS)


def _form(body: Any) -> str:
    several = isinstance(body, FeedbackItems) or (isinstance(body, dict) and "items" in body)
    return "several" if several else "one"


_Feedback = Annotated[
    Annotated[FeedbackItem, Tag("one")] | Annotated[FeedbackItems, Tag("several")],
    Discriminator(_form),
]


class Refused(ResponseModel):
    """`index`: which of the items it was."""

    index: int
    code: str
    message: str


class FeedbackReport(ResponseModel):
    """How many values are stored durably, `replaced` ones among them."""

    recorded: int
    replaced: int
    refused: list[Refused]


@router.post(FEEDBACK, name="feedback", responses=success(also=(400, 404)))
async def feedback(
    body: Annotated[_Feedback, Body()], service: Served, request: Request
) -> FeedbackReport:
    """Say how good an answer of an experiment was."""
    caller = caller_of(request.scope)
    items = body.items if isinstance(body, FeedbackItems) else [body]
    found: list[Recorded | StackedError] = [*map(_not_served, items)]
    values = {
        at: value for at, each in enumerate(items) if (value := _value(service, caller, each))
    }
    stored = await service.outcomes.record([*values.values()], caller.may_ask)
    for at, each in zip(values, stored, strict=True):
        found[at] = each
    if isinstance(body, FeedbackItem) and isinstance(found[0], StackedError):
        raise found[0]
    return FeedbackReport(
        recorded=sum(isinstance(each, Recorded) for each in found),
        replaced=sum(isinstance(each, Recorded) and each.replaced for each in found),
        refused=[
            Refused(index=at, code=each.code, message=str(each))
            for at, each in enumerate(found)
            if isinstance(each, StackedError)
        ],
    )


def _value(service: Service, caller: Caller, item: FeedbackItem) -> Value | None:
    """What is to be stored; None if this caller may use no such experiment."""
    if item.id is not None:
        return of_answer(item.id, item.metric, float(item.value))
    arms = service.routing.seen_by(caller.keys).arms.get(item.experiment or "")
    if arms is None:
        return None
    split, unit = arms.split, item.unit or ""
    exposure = Exposure(split.experiment.key, split.phase, split.arm(unit), split.pseudonym(unit))
    return of_unit(exposure, item.metric, float(item.value))


def _not_served(item: FeedbackItem) -> FeedbackUnknown:
    return FeedbackUnknown(
        f"no experiment is served under {item.experiment!r}; send the id of an answer"
    )


# -- results ------------------------------------------------------------------------------------


class Bounds(ResponseModel):
    """A value, and what it is at least and at most, however often somebody looks."""

    value: float
    low: float
    high: float


class ArmMetric(ResponseModel):
    """A metric of one arm, by unit. `difference`: from the first arm, with its bounds.

    `verdict`: few (units), open, better, worse, or different for what is neither.
    `units_needed`: of the two arms, for the difference of now to be certain.
    """

    arm: str
    units: int
    mean: float | None
    bounds: Bounds | None
    difference: Bounds | None
    verdict: Verdict | None
    units_needed: int | None


class Metric(ResponseModel):
    """`feedback`: clients gave the values; else the server measured them.

    `share`: each value is 0 or 1. `lower_is_better`: null if neither is.
    """

    metric: str
    feedback: bool
    share: bool
    lower_is_better: bool | None
    arms: list[ArmMetric]
    sentences: list[str]

    @classmethod
    def of_result(cls, result: MetricResult, feedback: bool, rate: float | None) -> Self:
        return cls.of(result, feedback=feedback, sentences=sentences(result, rate))


class PhaseArm(ResponseModel):
    key: str
    share: float
    digest: str
    units: int
    answers: int


class PhaseLine(ResponseModel):
    """One phase: a time in which weights and contents of the arms were the same.

    `drawn`: answers to requests without a unit, whose arm was drawn by chance; `dropped`: units
    beyond `experiments.units`. Neither is part of the result.
    """

    phase: str
    served: bool
    began: Moment
    last: Moment
    arms: list[PhaseArm]
    drawn: int
    dropped: int


class PhaseReport(PhaseLine):
    """`mismatch`: the numbers of units contradict the weights, so the arms cannot be compared.

    `sample_ratio`: the p-value of that.
    """

    sample_ratio: float
    mismatch: bool
    metrics: list[Metric]


class Experiment(ResponseModel):
    """One experiment: a phase with its results, and the others."""

    key: str
    served: bool
    phase: PhaseReport
    others: list[PhaseLine]


class ExperimentLine(ResponseModel):
    """One experiment, and its newest phase."""

    key: str
    served: bool
    phase: PhaseLine


class Experiments(ResponseModel):
    items: list[ExperimentLine]


class ResultQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    phase: str | None = Field(None, max_length=64, description="Default: the one that is served")
    metric: str | None = Field(None, max_length=64, description="Only this one")


@router.get("/stacked/experiments", name="list_experiments")
async def list_experiments(service: Served) -> Experiments:
    """Every experiment that is served or has results, those served first."""
    phases = await _phases(service)
    by_key: dict[str, Phase] = {}
    for phase in phases:
        by_key.setdefault(phase.experiment, phase)
    served = _served(service)
    lines = [
        ExperimentLine(
            key=key, served=key in {name for name, _ in served}, phase=_line(phase, served)
        )
        for key, phase in by_key.items()
    ]
    return Experiments(items=sorted(lines, key=lambda line: (not line.served, line.key)))


@router.get(
    "/stacked/experiments/{key:path}", name="show_experiment", responses=success(also=(404,))
)
async def show_experiment(
    key: ModelName, service: Served, query: Annotated[ResultQuery, Query()]
) -> Experiment:
    """The arms of an experiment compared, by every metric."""
    phases = [each for each in await _phases(service) if each.experiment == key]
    wanted = next((each for each in phases if query.phase in (None, each.phase)), None)
    if wanted is None:
        phase = f", or no phase {query.phase!r} of it" if phases else ""
        raise RecordAbsent(
            f"no experiment {key[:255]!r} is served or has results{phase}; "
            "GET /stacked/experiments lists them"
        )
    served = _served(service)
    samples = await asyncio.to_thread(service.registry.outcomes.samples, wanted)
    arms = [arm.key for arm in wanted.arms]
    lower = service.config.experiments.lower_is_better
    results = [
        result_of(
            name,
            arms,
            samples[name],
            share=name in SHARES or wanted.metrics.get(name, False),
            lower=name in lower,
        )
        for name in samples
        if query.metric in (None, name)
    ]
    p = mismatch(wanted.units, [arm.share for arm in wanted.arms])
    rate = wanted.units_per_second if (key, wanted.phase) in served else None
    return Experiment(
        key=key,
        served=key in {name for name, _ in served},
        phase=PhaseReport(
            **dict(_line(wanted, served)),
            sample_ratio=p,
            mismatch=p < MISMATCH,
            metrics=[
                Metric.of_result(each, each.metric in wanted.metrics, rate) for each in results
            ],
        ),
        others=[_line(each, served) for each in phases if each is not wanted],
    )


async def _phases(service: Service) -> list[Phase]:
    """All that have answers or are served; those served first, then the one with the newest."""
    await service.outcomes.flush()
    found = await asyncio.to_thread(service.registry.outcomes.phases)
    served = _served(service)
    there = {(each.experiment, each.phase): each for each in found}
    first = [
        there.pop(names)
        if names in there
        else Phase.empty(*names, service.routing.arms[names[0]].facts, now())
        for names in served
    ]
    return [*first, *there.values()]


def _served(service: Service) -> list[tuple[str, str]]:
    """Experiment and phase, of what is served."""
    try:
        arms = service.routing.arms
    except (NotReady, EngineDead):
        return []
    return [(key, each.split.phase) for key, each in arms.items()]


def _line(phase: Phase, served: list[tuple[str, str]]) -> PhaseLine:
    counts = zip(phase.arms, phase.units, phase.answers, strict=True)
    return PhaseLine(
        phase=phase.phase,
        served=(phase.experiment, phase.phase) in served,
        began=phase.began,
        last=phase.last,
        arms=[PhaseArm.of(arm, units=units, answers=answers) for arm, units, answers in counts],
        drawn=phase.drawn,
        dropped=phase.dropped,
    )
