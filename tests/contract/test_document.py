"""The OpenAPI document: that it has every route, and that it says what OCI's SDK expects."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
import schemathesis
from oci.data_science import DataScienceClient
from oci.data_science import models as sdk
from starlette.testclient import TestClient

from stacked.api.openapi import of_server, with_engine
from stacked.api.routes import create_routes
from stacked.config import AuthConfig, ControlConfig, OciAuth, ServerConfig
from stacked.errors import NotReady
from stacked.service import Service
from stacked.serving.targets import inner_path, is_open, model_target

PREFIX = "/20190101"
RESOURCES = (
    "models",
    "modelGroups",
    "modelGroupVersionHistory",
    "modelDeployments",
    "modelDeploymentShapes",
    "workRequests",
    "containers",
    "modelVersionSets",
)
# Told of in docs/control-plane.md, with the reasons.
NOT_THERE = re.compile("artifact_signature")
IN_ONE_ROUTE = re.compile("export_model|import_model|register_model|restore_archived")


class Double:
    """A service that has nothing but its configuration."""

    def __init__(self, **server: Any) -> None:
        self.config = ControlConfig(server=ServerConfig(**server))

    @property
    def vllm(self) -> Any:
        raise NotReady("nothing is deployed here")


def service(**server: Any) -> Service:
    return cast(Service, Double(**server))


def document(of: Service) -> dict[str, Any]:
    return of_server(create_routes(of))


DOCUMENT = document(service())
SCHEMAS = DOCUMENT["components"]["schemas"]


def operations(tree: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in tree["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def of_sdk() -> Iterator[tuple[str, str, str, str]]:
    """Every operation of the SDK on our resources: name, method, path, and its source."""
    for name, call in inspect.getmembers(DataScienceClient, inspect.isfunction):
        source = inspect.getsource(call)
        path = re.search(r'resource_path = "(/(\w+)[^"]*)"', source)
        method = re.search(r'method = "(\w+)"', source)
        if path and method and path[2] in RESOURCES:
            yield name, method[1], path[1], source


def test_the_path_of_health_is_the_one_that_is_set() -> None:
    there = document(service(health_path="/ready/now"))
    assert there["paths"].keys() - DOCUMENT["paths"].keys() == {"/ready/now"}


def test_every_path_of_inference_leads_to_a_model() -> None:
    found = 0
    for method, path, operation in operations(DOCUMENT):
        if operation["tags"] == ["Inference"]:
            inner = inner_path(re.sub(r"{\w+}", "x", path))
            assert model_target(method, inner.path) or is_open(method, inner.path), path
            found += 1
    assert found == 19


def test_the_document_is_valid_and_its_references_lead_somewhere() -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    for reference in references(DOCUMENT):
        place: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
    ids = [operation["operationId"] for _, _, operation in operations(DOCUMENT)]
    assert len(ids) == len(set(ids))


def references(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        if isinstance(tree.get("$ref"), str):
            yield tree["$ref"]
        tree = list(tree.values())
    for value in tree if isinstance(tree, list) else ():
        yield from references(value)


def test_every_operation_of_the_sdk_is_told_of_where_the_sdk_sends_it() -> None:
    told = {
        operation["operationId"]: (method, re.sub(r"{\w+}", "{}", path.removeprefix(PREFIX)))
        for method, path, operation in operations(DOCUMENT)
    }
    count = 0
    for name, method, path, _ in of_sdk():
        if not NOT_THERE.search(name) and not IN_ONE_ROUTE.search(name):
            assert told.get(name) == (method, re.sub(r"{\w+}", "{}", path)), name
            count += 1
    assert count == 64


def test_lists_take_every_query_that_the_sdk_sends() -> None:
    by_id = {operation["operationId"]: operation for _, _, operation in operations(DOCUMENT)}
    for name, _, _, source in of_sdk():
        if not name.startswith("list_") or NOT_THERE.search(name):
            continue
        found = re.search(r"query_params = {(.*?)}", source, re.DOTALL)
        sent = set(re.findall(r'"(\w+)":', found[1])) if found else set()
        told = {each["name"] for each in by_id[name]["parameters"] if each["in"] == "query"}
        assert sent <= told, name


# What is in answers here and not in OCI's, and the reverse.
OURS = {
    "MemberModelDetails": {"weight"},
    "ModelDeploymentModelStateSummary": {"lifecycleDetails"},
    "WorkRequestError": {"modelId"},
    "WorkRequestLogEntry": {"step"},
}


SHAPES = sorted(name for name in set(SCHEMAS) & set(dir(sdk)) if "properties" in SCHEMAS[name])


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_fields_that_the_sdk_reads(name: str) -> None:
    properties = SCHEMAS[name]["properties"]
    wanted = set(getattr(sdk, name)().attribute_map.values())
    if name == "ModelGroupDetails":
        wanted |= {"baseModelId"}  # a subclass's
    assert set(properties) == wanted | OURS.get(name, set())


# What the SDK can send and the server keeps without reading it, which docs/control-plane.md tells.
NOT_READ = {
    "InstancePool": {"bandwidthMbps", "maximumBandwidthMbps"},
    "ModelMetadata": {"hasArtifact"},
}
BODIES = {
    "CreateModel": sdk.CreateModelDetails,
    "UpdateModel": sdk.UpdateModelDetails,
    "Provenance": sdk.CreateModelProvenanceDetails,
    "CreateModelVersionSet": sdk.CreateModelVersionSetDetails,
    "UpdateModelVersionSet": sdk.UpdateModelVersionSetDetails,
    "CreateGroup": sdk.CreateModelGroupDetails,
    "CloneGroup": sdk.CloneModelGroupDetails,
    "Modified": sdk.ModifyModelGroupDetails,
    "UpdateGroup": sdk.UpdateModelGroupDetails,
    "CreateHistory": sdk.CreateModelGroupVersionHistoryDetails,
    "UpdateHistory": sdk.UpdateModelGroupVersionHistoryDetails,
    "CreateDeployment": sdk.CreateModelDeploymentDetails,
    "UpdateDeployment": sdk.UpdateModelDeploymentDetails,
    "Configuration": sdk.ModelGroupDeploymentConfigurationDetails,
    "ConfigurationChange": sdk.UpdateModelGroupDeploymentConfigurationDetails,
    "InstancePool": sdk.InstancePoolInfrastructureConfigurationDetails,
    "MemberDetails": sdk.MemberModelDetails,
    "ModelMetadata": sdk.Metadata,
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_takes_the_fields_that_the_sdk_sends(name: str) -> None:
    sent = set(BODIES[name]().attribute_map.values()) - NOT_READ.get(name, set())
    assert sent <= set(SCHEMAS[name]["properties"])


def test_the_document_is_served_also_when_nothing_is_deployed() -> None:
    with TestClient(create_routes(service())) as http:
        assert http.get("/openapi.json").json() == DOCUMENT


def test_a_server_that_asks_for_signatures_says_so() -> None:
    signed = document(service(auth=AuthConfig(oci=OciAuth())))
    assert signed["security"] == [{"ociSignature": []}]
    assert DOCUMENT["security"] == []


def test_a_running_engine_adds_what_can_be_reached_of_its_own() -> None:
    body = {"$ref": "#/components/schemas/Model"}
    asked = {"content": {"application/json": {"schema": body}}}
    fault = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Fault"}}}}
    engine = {
        "paths": {
            "/v1/completions": {
                "post": {"operationId": "theirs", "requestBody": asked, "responses": {"404": fault}}
            },
            "/v1/embeddings": {"post": {"responses": {}}},
            "/pause": {"post": {"responses": {}}},
        },
        "components": {"schemas": {"Model": {"type": "string"}}},
    }
    tree = with_engine(DOCUMENT, engine)
    completions = tree["paths"]["/v1/completions"]["post"]
    assert completions["operationId"] == "theirs"
    schema = completions["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/engine.Model"}
    assert "model-key" in {each["name"] for each in completions["parameters"]}
    shapes = completions["responses"]["404"]["content"]["application/json"]["schema"]["anyOf"]
    assert [shape["$ref"].rpartition("/")[2] for shape in shapes] == [
        "engine.Fault",
        "OpenAIError",
        "Error",
    ]
    assert "/v1/embeddings" in tree["paths"]
    assert "/pause" not in tree["paths"]
    assert tree["components"]["schemas"]["Model"] == SCHEMAS["Model"]
    assert tree["components"]["schemas"]["engine.Model"] == {"type": "string"}
