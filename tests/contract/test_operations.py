"""Every operation of OCI's SDK on models, groups, histories, deployments and work requests.

What is answered is held against the server's own OpenAPI document as well.
"""

from __future__ import annotations

import inspect
import re

import pytest
from oci.data_science import DataScienceClient, DataScienceClientCompositeOperations
from oci.model_deployment import ModelDeploymentClient

from tests.contract import world
from tests.contract.operations import OPERATIONS, deployments, groups, models, version_sets
from tests.contract.world import World

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


@pytest.mark.engine
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_as_the_contract_has_it(name: str, world: World) -> None:
    OPERATIONS[name](world)


def test_every_operation_of_the_sdk_on_these_resources_is_called() -> None:
    wanted = {"predict", "predict_with_response_stream"}
    for name, method in inspect.getmembers(DataScienceClient, inspect.isfunction):
        found = re.search(r'resource_path = "/(\w+)', inspect.getsource(method))
        if found and found[1] in RESOURCES:
            wanted.add(name)
    assert len(wanted) > 60
    assert set(OPERATIONS) == wanted
    inference = {name for name in vars(ModelDeploymentClient) if name.startswith("predict")}
    assert inference <= wanted


def test_every_waiting_form_of_these_operations_is_called() -> None:
    """Of what is offered; those that are refused fail before there is anything to wait for."""
    suffix = "_and_wait_for_state"
    modules = (world, models, version_sets, groups, deployments)
    source = "".join(inspect.getsource(module) for module in modules)
    refused_ones = re.compile("export|import|register|restore|signature")
    for name in vars(DataScienceClientCompositeOperations):
        verb = name.removesuffix(suffix)
        if verb == name or verb not in OPERATIONS or refused_ones.search(verb):
            continue
        generic = re.sub("^(activate|deactivate)_model_deployment", "{verb}_model_deployment", verb)
        assert f"{verb}{suffix}" in source or f"{generic}{suffix}" in source, name
