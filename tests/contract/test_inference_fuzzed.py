"""Requests for answers that the document allows, to the real engine: no 5xx, and no surprise."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.contract.world import World

pytestmark = pytest.mark.engine

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
CONFIG = SchemathesisConfig(
    seed=4,
    projects=ProjectsConfig(
        default=ProjectConfig(
            request_timeout=30,
            generation=GenerationConfig(deterministic=True, database="none"),
        )
    ),
)
OWN = ("predict", "v1/completions", "v1/chat/completions", "v1/models", "predictWithResponseStream")


def test_no_answer_of_a_model_is_a_fault_or_a_surprise(world: World) -> None:
    id = world.deployment()
    tree = world.raw("GET", "/openapi.json").json()
    assert "/tokenize" in tree["paths"], "the engine's own operations are told of"
    schema = schemathesis.openapi.from_dict(tree, config=CONFIG)
    statuses: Counter[int] = Counter()
    for result in schema.include(tag="Inference").get_all_operations():
        operation = result.ok()
        if operation.path.endswith(OWN):
            _ask(operation, world, {"deploymentId": id, "model": "a"}, statuses)
    assert statuses[200] > 20
    assert statuses[400] > 20


def _ask(operation: Any, world: World, names: dict[str, str], statuses: Counter[int]) -> None:
    """A few requests of one operation, most of them for a model that is there."""

    @given(case=operation.as_strategy())
    @settings(
        max_examples=8,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: schemathesis.Case) -> None:
        for name in case.path_parameters or {}:
            case.path_parameters[name] = names[name]
        for name in ("model-key", "model-ocid", "route"):
            (case.headers or {}).pop(name, None)
        if isinstance(case.body, dict):
            short = {"max_tokens": 2, "prompt": "The fox"}
            if len(repr(case.body)) % 2:
                case.body = {**short, "model": "b", "stream": len(repr(case.body)) % 3 == 0}
            else:
                case.body = {**case.body, "max_tokens": 2}
                case.body.pop("model", None)
        answer = case.call(base_url=world.url, auth=world.signer)
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    run()
