"""Requests for answers that the document allows, to the real engine: no 5xx, and no surprise.

The short form asks what people use, by one signer; the long one all of it, by each credential.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from stacked.keys import Rights, create, remove
from tests.api.test_rights import EVERYONE, OF_ALL, SERVING
from tests.contract.world import World
from tests.servers import Signed

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

    @_given(operation, 8)
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


HELD = frozenset({"a"})
RIGHTS = {"serving": Rights(), "held": Rights(keys=HELD), "admin": Rights(admin=True)}


@pytest.fixture
def tokens(world: World, signed: Signed) -> Iterator[dict[str, str]]:
    data_dir = signed.server.directory / "data"
    yield {kind: create(data_dir, f"fuzz-{kind}", rights) for kind, rights in RIGHTS.items()}
    for kind in RIGHTS:
        remove(data_dir, f"fuzz-{kind}")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["none", *RIGHTS])
def test_every_operation_of_the_engine_for_each_kind_of_credential(
    world: World, tokens: dict[str, str], kind: str
) -> None:
    names = {"deploymentId": world.deployment(), "model": "a"}
    schema = schemathesis.openapi.from_dict(world.raw("GET", "/openapi.json").json(), config=CONFIG)
    headers = {"authorization": f"Bearer {tokens[kind]}"} if kind in tokens else {}
    reaches = {"none": [], "held": SERVING}.get(kind, SERVING + OF_ALL)
    statuses: Counter[int] = Counter()
    for result in schema.include(tag="Inference").get_all_operations():
        operation = result.ok()
        line = f"{operation.method.upper()} {operation.path}"
        if line in EVERYONE:
            continue
        assert line in SERVING + OF_ALL, line

        def ask(case: schemathesis.Case, line: str = line) -> None:
            for name in set(names) & set(case.path_parameters or {}):
                case.path_parameters[name] = names[name]
            if isinstance(case.body, dict):
                case.body = {**case.body, "max_tokens": 2}
                if len(repr(case.body)) % 2:
                    case.body["model"] = ("a", "b")[len(repr(case.body)) % 4 // 2]
            answer: requests.Response = case.call(base_url=world.url, headers=headers)
            statuses[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)
            refused = {401: kind == "none", 403: kind != "none" and line not in reaches}
            for status, due in refused.items():
                assert (answer.status_code == status) is due, f"{line}: {answer.text}"
            if kind == "held" and answer.ok and "model-key" in answer.headers:
                assert answer.headers["model-key"] in HELD

        _given(operation, 5)(ask)()
    assert sum(statuses.values()) > 100
    assert (statuses[200] > 10) is (kind != "none"), statuses


def _given(operation: Any, count: int) -> Any:
    """A decorator for a test of so many requests of an operation."""

    def decorated(ask: Any) -> Any:
        return settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(given(case=operation.as_strategy())(ask))

    return decorated
