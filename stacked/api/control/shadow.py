"""What shadow traffic has shown: Stacked's own route, for administrators."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AliasPath, Field

from stacked.api.control.base import Json, RequestModel, ResponseModel
from stacked.api.control.calls import Served

router = APIRouter(
    prefix="/stacked",
    tags=["Stacked"],
    generate_unique_id_function=lambda route: route.name,
)


class ShadowQuery(RequestModel):
    samples: int = Field(
        0, ge=0, le=1000, description="How many comparisons with their texts, the newest first"
    )


class ShadowPart(ResponseModel):
    """`count` of `total`; the part of all is between `low` and `high` with 95 % confidence."""

    count: int
    total: int
    low: float
    high: float


class ShadowDifference(ResponseModel):
    """`low` and `high` hold with 95 % confidence, however often somebody looks."""

    value: float
    low: float
    high: float


class ShadowMeans(ResponseModel):
    """Means over so many answers, of the model that served and of the shadow."""

    count: int = Field(validation_alias=AliasPath("served", "count"))
    served: float = Field(validation_alias=AliasPath("served", "value"))
    shadow: float = Field(validation_alias=AliasPath("shadow", "value"))


class ShadowLogprob(ShadowMeans):
    """`difference`: the shadow's minus the other's, once there are enough to say."""

    difference: ShadowDifference | None = Field(validation_alias="interval")


class ShadowLine(ResponseModel):
    """What copies of a key's requests to another model have shown.

    `same` and `jsonSame` are of greedy requests, `logprob` of the served answers, by token.
    `failed` by error, `dropped` by reason.
    """

    key: str
    to: str
    served_digest: str = Field(validation_alias="served")
    shadow_digest: str = Field(validation_alias="shadow")
    copies: int
    same: ShadowPart | None = Field(validation_alias="same_part")
    json_same: ShadowPart | None = Field(validation_alias="json_part")
    logprob: ShadowLogprob
    tokens: ShadowMeans
    seconds: ShadowMeans
    failed: dict[str, int]
    dropped: dict[str, int]


class ShadowSample(ResponseModel):
    """One comparison, and the texts of both answers."""

    key: str
    to: str
    served_digest: str = Field(validation_alias="served")
    shadow_digest: str = Field(validation_alias="shadow")
    outcome: str
    request: Json
    answer: str
    copy_answer: str


class ShadowReport(ResponseModel):
    """Since this process began; the newest contents first."""

    items: list[ShadowLine]
    samples: list[ShadowSample]


@router.get("/shadow")
async def shadow(service: Served, query: Annotated[ShadowQuery, Query()]) -> ShadowReport:
    """What shadow traffic has shown, and how many copies were not made, and why."""
    found = service.shadow.findings
    newest = islice(reversed(found.samples), query.samples)
    return ShadowReport(
        items=[
            ShadowLine.of(tally, **line._asdict())
            for line, tally in reversed(found.tallies.items())
        ],
        samples=[ShadowSample.of(each, **each.line._asdict()) for each in newest],
    )
