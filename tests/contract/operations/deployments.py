"""The operations on the deployment, from its creation to its end, on work requests, and inference.

One function an operation; the table of `operations` calls them in their order.
"""

from __future__ import annotations

import json

import oci
import requests
from oci.data_science import models as sdk

from tests.conftest import PROMPT
from tests.contract.operations.table import operation
from tests.contract.world import C, World, refused, seed_deployment

FLEX = "VM.Standard.E4.Flex"


@operation
def list_model_deployment_shapes(world: World) -> None:
    """One machine, under the names that scripts ask for."""
    call = world.control.list_model_deployment_shapes
    shapes = {shape.name: shape for shape in call(C).data}
    assert list(shapes) == ["LOCAL", "VM.GPU.A10.1", "VM.GPU.A10.2", "BM.GPU.A10.4", FLEX]
    assert len({(shape.core_count, shape.memory_in_gbs) for shape in shapes.values()}) == 1
    assert shapes["LOCAL"].core_count >= 1
    assert shapes["LOCAL"].memory_in_gbs >= 1
    paged = oci.pagination.list_call_get_all_results(call, C, limit=2).data
    assert [shape.name for shape in paged] == list(shapes)


@operation
def list_containers(world: World) -> None:
    """What AQUA makes of the family that a model's metadata names."""
    rows = world.control.list_containers(target_workload="MODEL_DEPLOYMENT", is_latest=True).data
    found = {row.family_name: row for row in rows}["odsc-vllm-serving"]
    assert (found.is_latest, found.usages, bool(found.tag)) == (True, ["INFERENCE"], True)
    (how,) = found.workload_configuration_details_list
    assert (how.workload_type, how.server_port) == ("MODEL_DEPLOYMENT", how.health_check_port)
    assert "--served-model-name" in how.cmd
    more = how.additional_configurations
    assert (more["MODEL_DEPLOY_PREDICT_ENDPOINT"], more["PORT"]) == (
        "/v1/completions",
        str(how.server_port),
    )
    assert json.loads(more["restrictedParams"]) == []
    assert world.control.list_containers(usage_query_param="EVALUATION").data == []


@operation
def create_model_deployment(world: World) -> None:
    """With the seeds' own JSON; the composite waits until it serves."""
    id = world.deployment()
    assert len({world.answers(id, key) for key in ("base", "a", "b")}) == 3
    call, body = world.control.create_model_deployment, seed_deployment(world.group())
    assert id in refused(409, "Conflict", call, body)
    refused(404, "NotAuthorizedOrNotFound", world.inference.predict, f"{id}0", {"prompt": "x"})
    assert requests.get(f"{world.url}/health", timeout=60).status_code == 200


@operation
def get_model_deployment(world: World) -> None:
    shown = world.control.get_model_deployment(world.deployment()).data
    assert shown.lifecycle_state == "ACTIVE"
    assert shown.model_deployment_url == f"{world.url}/{shown.id}"
    assert shown.model_deployment_system_data.current_instance_count == 1
    details = shown.model_deployment_configuration_details
    assert details.deployment_type == "MODEL_GROUP"
    first = world.created.model_deployment_configuration_details
    environment = first.environment_configuration_details
    assert environment.environment_variables == {"WEB_CONCURRENCY": "1"}
    instance = details.infrastructure_configuration_details.instance_configuration
    assert instance.instance_shape_name == "VM.Standard.E4.Flex"
    assert shown.category_log_details.access.log_id == "ocid1.log.oc1.iad.l"


@operation
def list_model_deployments(world: World) -> None:
    id = world.deployment()
    assert [row.id for row in world.control.list_model_deployments(C, id=id).data] == [id]


@operation
def list_model_deployment_model_states(world: World) -> None:
    id = world.deployment()
    call = world.control.list_model_deployment_model_states
    assert {(row.inference_key, row.state) for row in call(id, C).data} == {
        (key, "SUCCESS") for key in ("base", "a", "b")
    }
    (one,) = call(id, C, inference_key="a", sort_by="timeCreated", limit=10).data
    assert one.model_id == world.adapters["a"]


@operation
def update_model_deployment(world: World) -> None:
    """LIVE: `a` gets the weights of `c`, the base another key, and back; then a name alone."""
    id = world.deployment()
    before = {key: world.answers(id, key) for key in ("a", "b", "base")}
    members = {"a": world.adapters["c"], "b": world.adapters["b"]}
    other = world.control.create_model_group(world.stacked(members)).data.id
    world.live(id, other)
    assert world.answers(id, "b") == before["b"]
    assert world.answers(id, "a") not in before.values()
    renamed = world.stacked({"a": world.adapters["a"]}, base_key="renamed")
    world.live(id, world.control.create_model_group(renamed).data.id)
    assert world.answers(id, "renamed") == world.answers(id, world.base) == before["base"]
    refused(404, "KeyUnknown", world.answers, id, "base")
    rows = world.raw("GET", f"/{id}/predict/v1/models").json()["data"]
    assert [(row["id"], row["parent"]) for row in rows] == [("renamed", None), ("a", "renamed")]
    world.live(id, world.group("a", "b"))
    assert {key: world.answers(id, key) for key in before} == before
    named = sdk.UpdateModelDeploymentDetails(display_name="named")
    call, etag = world.control.update_model_deployment, world.control.get_model_deployment(id)
    refused(412, "NoEtagMatch", call, id, named, if_match="another")
    assert call(id, named, if_match=etag.headers["etag"]).data is None
    assert world.control.get_model_deployment(id).data.display_name == "named"
    refused(412, "NoEtagMatch", call, id, named, if_match=etag.headers["etag"])


@operation
def predict(world: World) -> None:
    id = world.deployment()
    body = {"model": "a", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    answer = world.inference.predict(id, body)
    assert isinstance(answer.data, str)
    assert answer.headers["model-key"] == "a"
    body["model"] = world.adapters["a"]
    assert world.text(world.inference.predict(id, body).data) == world.text(answer.data)


@operation
def predict_with_response_stream(world: World) -> None:
    id = world.deployment()
    body = {"model": "b", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    answer = world.inference.predict_with_response_stream(id, body)
    assert answer.headers["content-type"] == "text/event-stream"
    events = [event.data for event in answer.data.events()]
    assert events[-1] == "[DONE]"
    assert "".join(map(world.text, events[:-1])) == world.answers(id, "b")


@operation
def change_model_deployment_compartment(world: World) -> None:
    id = world.deployment()
    for place in ("ocid1.compartment.oc1..other", C):
        details = sdk.ChangeModelDeploymentCompartmentDetails(compartment_id=place)
        assert world.control.change_model_deployment_compartment(id, details).data is None
        assert world.control.get_model_deployment(id).data.compartment_id == place


@operation
def get_work_request(world: World) -> None:
    made = world.control.create_model_group(world.stacked({}))
    work = world.control.get_work_request(made.headers["opc-work-request-id"]).data
    assert (work.status, work.percent_complete) == ("SUCCEEDED", 100)
    assert work.time_finished >= work.time_accepted
    (resource,) = work.resources
    assert (resource.action_type, resource.identifier) == ("CREATED", made.data.id)
    assert resource.entity_uri == f"/20190101/modelGroups/{made.data.id}"


@operation
def list_work_requests(world: World) -> None:
    id = world.deployment()
    rows = world.control.list_work_requests(C, resource_id=id, sort_by="timeAccepted").data
    assert rows[-1].operation_type == "MODEL_DEPLOYMENT_CREATE"
    call = world.control.list_work_requests
    kinds = call(C, operation_type="MODEL_DEPLOYMENT_UPDATE", status="SUCCEEDED").data
    assert {row.operation_type for row in kinds} <= {"MODEL_DEPLOYMENT_UPDATE"}


@operation
def list_work_request_logs(world: World) -> None:
    rows = world.control.list_work_requests(C, resource_id=world.deployment()).data
    logs = world.control.list_work_request_logs(rows[-1].id).data
    assert any("Importing vLLM" in line.message for line in logs)
    assert all(line.timestamp for line in logs)


@operation
def list_work_request_errors(world: World) -> None:
    rows = world.control.list_work_requests(C, resource_id=world.deployment()).data
    assert world.control.list_work_request_errors(rows[-1].id).data == []


@operation
def cancel_work_request(world: World) -> None:
    """What is over cannot be canceled; what is under way is in `test_lifecycle`."""
    rows = world.control.list_work_requests(C, resource_id=world.deployment()).data
    refused(409, "Conflict", world.control.cancel_work_request, rows[-1].id)
    call = world.control.cancel_work_request
    refused(412, "NoEtagMatch", call, rows[-1].id, if_match="another")
    refused(404, "NotAuthorizedOrNotFound", world.control.cancel_work_request, "nothing")


@operation
def deactivate_model_deployment(world: World) -> None:
    id = world.deployment("INACTIVE")
    body = {"model": "a", "prompt": PROMPT}
    for verb in (world.control.activate_model_deployment, world.control.delete_model_deployment):
        refused(412, "NoEtagMatch", verb, id, if_match="another")
    refused(404, "NotAuthorizedOrNotFound", world.inference.predict, id, body)
    refused(409, "Conflict", world.control.deactivate_model_deployment, id)
    assert requests.get(f"{world.url}/health", timeout=60).status_code == 503


@operation
def activate_model_deployment(world: World) -> None:
    id = world.deployment("ACTIVE")
    assert len({world.answers(id, key) for key in ("base", "a", "b")}) == 3
    refused(409, "Conflict", world.control.activate_model_deployment, id)


@operation
def delete_model_deployment(world: World) -> None:
    world.retire()
