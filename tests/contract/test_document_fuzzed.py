"""Requests that the OpenAPI document allows, and some that it does not: no 5xx, and no answer that
the document does not have."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import (
    CoveragePhaseConfig,
    GenerationConfig,
    PhasesConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from stacked.api.openapi import of_server
from stacked.api.routes import create_routes
from stacked.config import ControlConfig
from stacked.service import Service
from stacked.store import outgoing
from tests.api.control.plane import archive_of, packed, stacked_body
from tests.contract.rig import Rig, rig

_DOCUMENT = of_server(create_routes(cast(Service, SimpleNamespace(config=ControlConfig()))))
_CONFIG = SchemathesisConfig(
    seed=4,
    projects=ProjectsConfig(
        default=ProjectConfig(
            request_timeout=20,
            generation=GenerationConfig(
                max_examples=20, deterministic=True, database="none", no_shrink=True
            ),
            phases=PhasesConfig(coverage=CoveragePhaseConfig(enabled=False)),
        )
    ),
)
schema = schemathesis.openapi.from_dict(_DOCUMENT, config=_CONFIG)
# There is no engine to ask; and what needs object storage answers 501, as it must.
without_engine = schema.exclude(tag="Inference").exclude(path_regex=r"/actions/\{action\}$")

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
_known: dict[str, list[str]] = {}
_zips: list[bytes] = []
_sources: list[str] = []
# A metadatum that has an artifact, and a key that is served.
_NAMES = {"key": "k", "name": "x"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("rig")) as running:
        yield running


@pytest.fixture(autouse=True)
def _stocked(server: Rig) -> None:
    server.stock()
    _known.update(server.ids)
    _zips[:] = [packed(server.roots, 1), packed(server.roots, 2)]
    _sources[:] = [str(server.roots / "adapter-2")]
    with outgoing(str(server.roots / "adapter-1")) as adapter:
        _NAMES["digest"] = adapter.digest


@schema.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> Any:
    """Three of four ids are those of records that are there."""
    given = dict(path_parameters or {})
    collection = context.operation.path.removeprefix("/20190101/").partition("/")[0]
    for name in given:
        number = len(str(given[name]))
        if name == "id" and number % 4 and collection in _known:
            there = _known[collection]
            given[name] = there[number % len(there)]
        elif name in _NAMES and number % 2:
            given[name] = _NAMES[name]
    return given


@schema.hook
def map_headers(context: Any, headers: dict[str, Any] | None) -> Any:
    """An `if-match` that is made up is one of another version: half of them are left out."""
    given = dict(headers or {})
    if len(given.get("if-match", "")) % 2 == 0:
        given.pop("if-match", None)
    return given


@schema.hook
def map_body(context: Any, body: Any) -> Any:
    """Half of the bodies have, beside what was made up, what must be there to be taken."""
    method, path = context.operation.method.upper(), context.operation.path
    if not _known or len(repr(body)) % 2:
        return body
    if path == "/20190101/models/{id}/artifact":
        return _zips[len(repr(body)) // 2 % 2]
    if path == "/20190101/modelGroups/{id}/artifact":
        return archive_of(**{"score.py": b"", "runtime.yaml": b""})
    if path == "/stacked/adapters/{digest}":
        return _zips[0]
    needed = _needed(method, path.removeprefix("/20190101"))
    return {**body, **needed} if isinstance(body, dict) else body


def _needed(method: str, path: str) -> dict[str, Any]:
    """What a body must say of records that are there, at the paths where it must."""
    first, _, _, base = _known["models"]
    group = {"modelGroupId": _known["modelGroups"][1]}
    if (method, path) == ("POST", "/modelGroups"):
        return stacked_body((first, "x"), base=base)
    if path.startswith("/modelDeployments") and method in ("POST", "PUT"):
        kind = {"deploymentType": "MODEL_GROUP", "modelGroupConfigurationDetails": group}
        return {"modelDeploymentConfigurationDetails": kind}
    if path in ("/models/{name}", "/model/{name}", "/v1/load_lora_adapter"):
        name, place = ("source", "key") if path.startswith("/model") else ("lora_path", "lora_name")
        return {name: _sources[0], place: "y"}
    if path.endswith("/provenance") or (method == "PUT" and path.count("/") == 2):
        return {"displayName": "n", "freeformTags": {}, "definedTags": None}
    return {}


@without_engine.parametrize()
@settings(suppress_health_check=list(HealthCheck), deadline=None)
def test_no_answer_is_a_fault_or_a_surprise(case: schemathesis.Case, server: Rig) -> None:
    if (case.method, case.path) == ("POST", "/20190101/modelDeployments"):
        server.retire()  # one deployment serves at a time
    case.call_and_validate(base_url=server.url, checks=_CHECKS)
