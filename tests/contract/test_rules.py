"""The rules of the wire through OCI's SDK: paging, filters, order, etags, retry tokens, errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import oci
import pytest
import requests
from oci.data_science import models as sdk
from oci.pagination import list_call_get_all_results
from oci.retry import DEFAULT_RETRY_STRATEGY

from tests.contract.world import C, P, World, refused
from tests.servers import MAX_BODY_BYTES

pytestmark = pytest.mark.engine

ABSENT = "ocid1.datasciencemodel.oc1..absent"


@pytest.fixture(scope="module")
def rows(world: World) -> list[str]:
    """Seven models of one project, from the first to the last."""
    details = [
        sdk.CreateModelDetails(compartment_id=C, project_id="rows", display_name=name)
        for name in ("b", "B", "a", "é", "b", "", "z")
    ]
    ids = [world.control.create_model(one).data.id for one in details]
    world.control.deactivate_model(ids[2])
    return ids


# -- lists ----------------------------------------------------------------------------------


def test_pages_are_followed_to_the_end_by_the_header_alone(world: World, rows: list[str]) -> None:
    pages = []
    page = world.control.list_models(C, project_id="rows", limit=3)
    while page.has_next_page:
        pages.append(page)
        page = world.control.list_models(C, project_id="rows", limit=3, page=page.next_page)
    pages.append(page)
    assert [len(page.data) for page in pages] == [3, 3, 1]
    assert [row.id for page in pages for row in page.data] == rows[::-1]
    assert "opc-next-page" not in pages[-1].headers
    everything = list_call_get_all_results(world.control.list_models, C, project_id="rows").data
    assert [row.id for row in everything] == rows[::-1]


def test_pages_stay_true_while_rows_are_added(world: World) -> None:
    ids = [world.history() for _ in range(4)]
    call = world.control.list_model_group_version_histories
    first = call(C, limit=2)
    world.history()
    rest = call(C, limit=2, page=first.next_page)
    assert [row.id for row in (*first.data, *rest.data)] == ids[::-1]


def test_names_sort_by_their_bytes_and_times_run_down(world: World, rows: list[str]) -> None:
    def names(**order: str) -> list[str]:
        found = world.control.list_models(C, project_id="rows", **order).data
        return [row.display_name for row in found if row.display_name in ("a", "b", "B", "é", "z")]

    assert names(sort_by="displayName") == ["B", "a", "b", "b", "z", "é"]
    assert names(sort_by="displayName", sort_order="DESC") == ["é", "z", "b", "b", "a", "B"]
    assert names(sort_order="ASC") == ["b", "B", "a", "é", "b", "z"]
    assert names(sort_by="lifecycleState")[-1] == "a"


def test_each_filter_finds_what_it_names_and_nothing_else(world: World, rows: list[str]) -> None:
    def found(**given: str) -> list[str]:
        return [row.id for row in world.control.list_models(C, project_id="rows", **given).data]

    user = world.control.base_client.config["user"]
    assert found(id=rows[3]) == [rows[3]]
    assert found(display_name="b") == [rows[4], rows[0]]
    assert found(lifecycle_state="INACTIVE") == [rows[2]]
    assert found(created_by=user) == rows[::-1]
    assert found(created_by="somebody") == found(category="SERVICE") == []
    assert found(version_label="none") == found(model_version_set_name="none") == []


def test_groups_and_their_members_are_filtered(world: World) -> None:
    line = world.history()
    id = world.group("a", "b", model_group_version_history_id=line)
    found = world.control.list_model_groups(C, model_group_version_history_id=line).data
    assert [row.id for row in found] == [id]
    (one,) = world.control.list_model_group_models(id, C, id=world.adapters["b"]).data
    assert one.inference_key == "b"
    assert world.control.list_model_group_models(id, C, lifecycle_state="DELETED").data == []


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "page=x", "sortBy=x", "sortOrder=x", "lifecycleState=x"]
)
def test_a_query_that_cannot_be_is_refused(query: str, world: World) -> None:
    for path in ("models", "modelGroups", "modelDeployments", "modelGroupVersionHistory"):
        answer = world.raw("GET", f"/20190101/{path}?compartmentId=c&{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")


def test_a_page_of_another_list_is_refused(world: World, rows: list[str]) -> None:
    token = world.control.list_models(C, project_id="rows", limit=1).next_page
    call = world.control.list_models
    refused(400, "InvalidParameter", call, C, project_id="other", limit=1, page=token)


# -- etags ----------------------------------------------------------------------------------

Act = Callable[..., Any]


def _changes(world: World) -> Iterator[tuple[str, str, Act]]:
    """Calls that keep `if-match`: how the record is read, its id, and the change."""
    control, named = world.control, {"display_name": "n"}
    other = "ocid1.compartment.oc1..other"
    model, group, line = world.model(), world.group(), world.history()
    yield "model", model, lambda id, **m: control.update_model(id, named, **m)
    yield "model", model, lambda id, **m: control.deactivate_model(id, **m)
    yield "model", model, lambda id, **m: control.activate_model(id, **m)
    yield "model", model, lambda id, **m: control.create_model_artifact(id, world.zips["a"], **m)
    move = sdk.ChangeModelCompartmentDetails(compartment_id=other)
    yield "model", model, lambda id, **m: control.change_model_compartment(id, move, **m)
    yield "model", model, lambda id, **m: control.delete_model(id, **m)
    yield "model_group", group, lambda id, **m: control.update_model_group(id, named, **m)
    yield "model_group", group, lambda id, **m: control.deactivate_model_group(id, **m)
    yield "model_group", group, lambda id, **m: control.activate_model_group(id, **m)
    yield "model_group", group, lambda id, **m: control.delete_model_group(id, **m)
    kind = "model_group_version_history"
    yield kind, line, lambda id, **m: control.update_model_group_version_history(id, named, **m)
    yield kind, line, lambda id, **m: control.delete_model_group_version_history(id, **m)


def test_a_change_is_done_with_the_etag_of_now_and_with_no_other(world: World) -> None:
    for kind, id, act in _changes(world):
        read = getattr(world.control, f"get_{kind}")
        before = read(id)
        refused(412, "NoEtagMatch", act, id, if_match="another")
        assert read(id).headers["etag"] == before.headers["etag"]
        act(id, if_match=before.headers["etag"])
        assert read(id).headers["etag"] != before.headers["etag"]
        refused(412, "NoEtagMatch", act, id, if_match=before.headers["etag"])


# -- retry tokens ---------------------------------------------------------------------------


def _creations(world: World) -> Iterator[tuple[Act, Any, Any]]:
    """A call that takes a token, what it is given, and something else."""
    control = world.control
    yield control.create_model, *({**_model(), "displayName": name} for name in "ab")
    lines = ({**_model(), "displayName": world.name("line")} for _ in "ab")
    yield control.create_model_group_version_history, *lines
    groups = (world.stacked({}, display_name=name) for name in "ab")
    yield control.create_model_group, *groups


def _model() -> dict[str, Any]:
    return {"compartmentId": C, "projectId": P}


def test_a_token_makes_two_calls_one_and_refuses_other_content(world: World) -> None:
    for number, (call, one, other) in enumerate(_creations(world)):
        token = f"token{number}"
        first, again = call(one, opc_retry_token=token), call(one, opc_retry_token=token)
        assert first.data.id == again.data.id
        assert first.headers["etag"] == again.headers["etag"]
        assert first.request_id != again.request_id
        refused(409, "InvalidatedRetryToken", call, other, opc_retry_token=token)
        assert call(other, opc_retry_token=f"{token}b").data.id != first.data.id


def test_an_upload_is_made_once_for_a_token(world: World) -> None:
    id = world.model()
    call, zip = world.control.create_model_artifact, world.zips["a"]
    etags = {call(id, zip, opc_retry_token="up").headers["etag"] for _ in range(2)}
    assert len(etags) == 1
    refused(409, "InvalidatedRetryToken", call, id, world.zips["b"], opc_retry_token="up")


def test_the_default_retry_strategy_sends_tokens_that_are_taken(world: World) -> None:
    sent: list[str | None] = []

    def note(answer: Any, *args: Any, **kwargs: Any) -> None:
        sent.append(answer.request.headers.get("opc-retry-token"))

    hooks = world.control.base_client.session.hooks["response"]
    hooks.append(note)
    try:
        options = {"retry_strategy": DEFAULT_RETRY_STRATEGY}
        id = world.control.create_model(_model(), **options).data.id
        assert world.control.get_model(id, **options).data.id == id
    finally:
        hooks.remove(note)
    assert sent[0]
    assert sent[1] is None


# -- errors ---------------------------------------------------------------------------------


def test_what_is_missing_and_what_is_wrong_is_named(world: World) -> None:
    group = world.control.create_model_group
    body = {"createType": "CREATE", "compartmentId": "c"}
    assert "modelGroupDetails" in refused(400, "MissingParameter", group, body)
    long = world.stacked({"k" * 33: world.adapters["a"]})
    said = refused(400, "InvalidParameter", group, long)
    assert "inferenceKey" in said
    twice = world.stacked({"base": world.adapters["a"]})
    twice.member_model_entries.member_model_details *= 2
    refused(400, "InvalidParameter", group, twice)
    empty = world.stacked({"a": world.model()})
    refused(409, "Conflict", group, empty)
    deployment = world.control.create_model_deployment
    assert "modelDeploymentConfigurationDetails" in refused(
        400, "MissingParameter", deployment, {"projectId": P}
    )
    single = {"modelDeploymentConfigurationDetails": {"deploymentType": "SINGLE_MODEL"}}
    assert "not served yet" in refused(400, "InvalidParameter", deployment, single)


def test_what_is_not_there_is_one_error_everywhere(world: World) -> None:
    control, code = world.control, "NotAuthorizedOrNotFound"
    for call in (
        control.get_model,
        control.delete_model,
        control.get_model_group,
        control.get_model_group_version_history,
        control.get_model_deployment,
        control.activate_model_deployment,
        control.get_work_request,
        control.list_work_request_logs,
        control.get_model_artifact_content,
    ):
        refused(404, code, call, ABSENT)
    refused(404, code, world.inference.predict, ABSENT, {"prompt": "x"})
    refused(404, code, control.list_model_group_models, ABSENT, C)
    refused(404, None, control.head_model_artifact, ABSENT)


def test_a_state_that_does_not_follow_is_a_conflict_that_is_not_retried(world: World) -> None:
    id = world.model()
    options = {"retry_strategy": DEFAULT_RETRY_STRATEGY}
    refused(409, "Conflict", world.control.activate_model, id, **options)


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code"),
    [
        ("POST", "/20190101/models", b"{", 400, "CannotParseRequest"),
        ("POST", "/20190101/models", b"[]", 400, "CannotParseRequest"),
        ("POST", "/20190101/models", b" " * (MAX_BODY_BYTES + 1), 413, "PayloadTooLarge"),
        ("PATCH", "/20190101/models", b"{}", 405, "MethodNotAllowed"),
        ("GET", "/20190101/nothing", None, 404, "NotAuthorizedOrNotFound"),
        ("GET", "/20190101/notebookSessions", None, 404, "NotAuthorizedOrNotFound"),
    ],
)
def test_a_request_that_no_sdk_makes_has_its_code(
    method: str, path: str, sent: bytes | None, status: int, code: str, world: World
) -> None:
    headers = {} if sent is None else {"content-type": "application/json"}
    answer = world.raw(method, path, data=sent, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == {"code", "message"}
    assert answer.headers["opc-request-id"]


def test_an_upload_says_how_long_it_is_and_a_range_is_one_that_is_there(world: World) -> None:
    id, pieces = world.model(), iter([b"a", b"b"])
    # Uploads are signed without their bodies, and so without a length.
    auth = world.signer.without_content_headers
    place = f"{world.url}/20190101/models/{id}/artifact"
    answer = requests.post(place, data=pieces, auth=auth, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (411, "LengthRequired")
    call = world.control.get_model_artifact_content
    refused(416, "RangeInvalid", call, world.adapters["a"], range="bytes=99999999-")


def test_a_request_while_nothing_is_served_is_told_so(world: World) -> None:
    """Below a deployment that is starting it is `ServiceUnavailable`: see `World.deployment`."""
    world.retire()
    answer = world.raw("POST", "/predict", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["code"]) == (503, "NotReady")
    health = httpx.get(f"{world.url}/health")
    assert health.status_code == 503
    assert "nothing is deployed" in health.json()["message"]


def test_who_does_not_sign_is_told_so(world: World) -> None:
    answer = httpx.get(f"{world.url}/20190101/models?compartmentId=c")
    assert (answer.status_code, answer.json()["code"]) == (401, "NotAuthenticated")


def test_the_id_of_a_request_comes_back(world: World) -> None:
    answer = world.control.list_models(C, opc_request_id="MINE")
    assert answer.request_id == "MINE"
    with pytest.raises(oci.exceptions.ServiceError) as caught:
        world.control.get_model(ABSENT, opc_request_id="MINE2")
    assert caught.value.request_id == "MINE2"


def test_lists_are_bare_arrays_and_discriminators_are_there(world: World) -> None:
    rows = world.raw("GET", "/20190101/modelGroups?compartmentId=c&limit=2").json()
    assert isinstance(rows, list)
    group = world.raw("GET", f"/20190101/modelGroups/{world.group()}").json()
    assert group["modelGroupDetails"]["type"] == "STACKED"
    assert group["modelGroupDetails"]["customMetadataList"] == []
    assert json.dumps(group).count('"freeformTags": {}') == 1
