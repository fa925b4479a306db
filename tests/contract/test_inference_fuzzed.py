"""Requests for answers that the document allows, to the real engine: no 5xx, and no surprise.

The short form asks what people use, by one signer; the long one all of it, by each credential.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
import requests
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from stacked.keys import Rights, create
from tests.api.test_rights import EVERYONE, OF_ALL, SERVING
from tests.conftest import TinyModels
from tests.contract.world import World
from tests.serving import free_port, serving

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
            generation=GenerationConfig(
                deterministic=True,
                database="none",
                with_security_parameters=False,  # each request has one credential: its caller's
            ),
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
    assert statuses[200] > 20, statuses
    assert statuses[400] > 20, statuses


def _ask(operation: Any, world: World, names: dict[str, str], statuses: Counter[int]) -> None:
    """A few requests of one operation, most of them for a model that is there."""

    @_given(operation, 12)
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


@dataclass(frozen=True)
class Bearing:
    """A server for callers with tokens, and one of each kind."""

    url: str
    tokens: dict[str, str]

    def send(self, kind: str, case: schemathesis.Case) -> requests.Response:
        return cast(requests.Response, case.call(base_url=self.url, headers=self.headers(kind)))

    def headers(self, kind: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.tokens[kind]}"} if kind in self.tokens else {}

    def get(self, path: str) -> Any:
        return requests.get(self.url + path, headers=self.headers("admin"), timeout=60).json()


@pytest.fixture(scope="module")
def bearing(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bearing]:
    directory, port = tmp_path_factory.mktemp("bearing"), free_port()
    members = [{"key": key, "source": str(tiny_models.adapters[key])} for key in "ab"]
    tree = {
        "base": {"model": str(tiny_models.base)},
        "group": {"members": members},
        "engine": {"max_model_len": 512, "max_loras": 2, "kv_cache_memory_bytes": 2**27},
        "server": {"port": port, "auth": {"bearer": True}},
    }
    path = directory / "bearing.yaml"
    path.write_text(yaml.safe_dump(tree))
    tokens = {kind: create(directory / "data", kind, rights) for kind, rights in RIGHTS.items()}
    with serving(str(path), "--data-dir", "data", directory=directory, port=port) as server:
        yield Bearing(server.url, tokens)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["none", *RIGHTS])
def test_every_operation_of_the_engine_for_each_kind_of_credential(
    bearing: Bearing, kind: str
) -> None:
    names = {"deploymentId": bearing.get("/stacked/status")["deploymentId"], "model": "a"}
    schema = schemathesis.openapi.from_dict(bearing.get("/openapi.json"), config=CONFIG)
    statuses: Counter[int] = Counter()
    for result in schema.include(tag="Inference").get_all_operations():
        operation = result.ok()
        line = f"{operation.method.upper()} {operation.path}"
        if line not in EVERYONE:
            _bear(operation, line, bearing, kind, names, statuses)
    assert sum(statuses.values()) > 100
    assert (statuses[200] > 10) is (kind != "none"), statuses


def _bear(
    operation: Any,
    line: str,
    bearing: Bearing,
    kind: str,
    names: dict[str, str],
    statuses: Counter[int],
) -> None:
    """A few requests of one operation by one kind of credential: as its rights are."""
    assert line in SERVING + OF_ALL, line
    reached = line in (SERVING if kind == "held" else SERVING + OF_ALL)

    @_given(operation, 5)
    def run(case: schemathesis.Case) -> None:
        for name in set(names) & set(case.path_parameters or {}):
            case.path_parameters[name] = names[name]
        if isinstance(case.body, dict):
            case.body = {**case.body, "max_tokens": 2}
            if len(repr(case.body)) % 2:
                case.body["model"] = ("a", "b")[len(repr(case.body)) % 4 // 2]
        answer = bearing.send(kind, case)
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)
        refused = {401: kind == "none", 403: kind != "none" and not reached}
        for status, due in refused.items():
            assert (answer.status_code == status) is due, f"{line}: {answer.text}"
        if kind == "held" and answer.status_code == 200:
            assert HELD.issuperset(answer.headers.get("model-key", ()))

    run()


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
