"""A request at the engine's door: whose share of the engine it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stacked.callers import Caller, called_by
from stacked.core import Adapter, Digest, Member, ModelId
from stacked.fairness import Share
from stacked.groups.routing import Route
from stacked.serving.door import Call
from stacked.serving.targets import model_target


def share_of(caller: Caller, member: Member | None = None, **body: Any) -> Share:
    target = model_target("POST", "/v1/completions")
    assert target is not None
    call = Call.read(target, {**called_by(caller), "headers": []}, json.dumps(body).encode())
    return call.share(Route("sql", "sql", ModelId("m"), None, None, 1, member))


def test_share_is_the_callers_and_the_members() -> None:
    adapter = Adapter(Digest("sha256:1"), Path(), 1, 8, ())
    member = Member(ModelId("m"), adapter, "sql", weight=3)
    found = share_of(Caller("alice", weight=2), member, prompt="x")
    assert found == Share("alice", "sql", caller_weight=2, key_weight=3)
    assert share_of(Caller("alice", user="ocid1.user")).caller == "ocid1.user"


@pytest.mark.parametrize(
    ("body", "batch"),
    [
        ({}, False),
        ({"priority": 1}, True),
        ({"priority": 0}, False),
        ({"priority": -5}, False),
        ({"priority": "9"}, False),
        ({"service_tier": "flex"}, True),
        ({"service_tier": "priority"}, False),
        ({"service_tier": ["flex"]}, False),
    ],
)
def test_anyone_may_let_others_go_first_and_nobody_before_them(
    body: dict[str, Any], batch: bool
) -> None:
    assert share_of(Caller("alice"), **body).batch is batch
    assert share_of(Caller("robot", batch=True), **body).batch
