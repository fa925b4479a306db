"""The operations on model groups and their version histories.

One function an operation; the table of `operations` calls them in their order.
"""

from __future__ import annotations

from oci.data_science import models as sdk

from tests.contract.operations.table import operation
from tests.contract.world import OVER, WAIT, C, P, World, refused


@operation
def create_model_group(world: World) -> None:
    details = world.stacked({"a": world.adapters["a"]}, display_name="made")
    call = world.waiting.create_model_group_and_wait_for_state
    done = call(details, wait_for_states=OVER, waiter_kwargs=WAIT).data
    assert (done.status, done.operation_type) == ("SUCCEEDED", "MODEL_GROUP_CREATE")
    group = world.control.get_model_group(done.resources[0].identifier).data
    assert (group.lifecycle_state, group.create_type) == ("ACTIVE", "CREATE")
    keys = [entry.inference_key for entry in group.member_model_entries.member_model_details]
    assert keys == ["base", "a"]
    clone = _clone(world, group.id)
    keys = [entry.inference_key for entry in clone.member_model_entries.member_model_details]
    assert (clone.create_type, clone.source_model_group_id) == ("CLONE", group.id)
    assert (keys, clone.display_name) == (["base", "b"], "cloned")


def _clone(world: World, id: str) -> sdk.ModelGroup:
    """A clone in which `a` has made room for `b`."""
    removed = sdk.MemberModelDetails(model_id=world.adapters["a"])
    inserted = sdk.MemberModelDetails(model_id=world.adapters["b"], inference_key="b")
    patches = [
        sdk.PatchInsertNewMemberModels(values=[inserted]),
        sdk.PatchRemoveMemberModels(values=[removed]),
    ]
    source = sdk.CloneCreateFromModelGroupDetails(
        source_id=id,
        modify_model_group_details=sdk.ModifyModelGroupDetails(display_name="cloned"),
        patch_model_group_member_model_details=sdk.PatchModelGroupMemberModelDetails(items=patches),
    )
    details = sdk.CloneModelGroupDetails(
        compartment_id=C, project_id=P, model_group_clone_source_details=source
    )
    return world.control.create_model_group(details).data


@operation
def get_model_group(world: World) -> None:
    group = world.control.get_model_group(world.group("a", "b")).data
    assert group.model_group_details.type == "STACKED"
    assert group.model_group_details.base_model_id == world.base
    assert group.model_group_details.custom_metadata_list == []


@operation
def list_model_groups(world: World) -> None:
    id = world.group()
    rows = world.control.list_model_groups(C, id=id).data
    assert [row.id for row in rows] == [id]
    assert rows[0].model_group_details.type == "STACKED"


@operation
def update_model_group(world: World) -> None:
    details = sdk.UpdateModelGroupDetails(display_name="called", version_label="two")
    call = world.waiting.update_model_group_and_wait_for_state
    changed = call(world.group(), details, ["ACTIVE"], waiter_kwargs=WAIT).data
    assert (changed.display_name, changed.version_label) == ("called", "two")


@operation
def deactivate_model_group(world: World) -> None:
    call = world.waiting.deactivate_model_group_and_wait_for_state
    assert call(world.group(), ["INACTIVE"], waiter_kwargs=WAIT).data.lifecycle_state == "INACTIVE"


@operation
def activate_model_group(world: World) -> None:
    id = world.group()
    answer = world.control.deactivate_model_group(id)
    assert world.control.get_work_request(answer.headers["opc-work-request-id"]).data.resources
    call = world.waiting.activate_model_group_and_wait_for_state
    assert call(id, ["ACTIVE"], waiter_kwargs=WAIT).data.lifecycle_state == "ACTIVE"


@operation
def delete_model_group(world: World) -> None:
    id = world.group()
    call = world.waiting.delete_model_group_and_wait_for_state
    done = call(id, wait_for_states=OVER, waiter_kwargs=WAIT).data
    assert (done.status, done.operation_type) == ("SUCCEEDED", "MODEL_GROUP_DELETE")
    assert world.control.get_model_group(id).data.lifecycle_state == "DELETED"


@operation
def change_model_group_compartment(world: World) -> None:
    id, other = world.group(), "ocid1.compartment.oc1..other"
    details = sdk.ChangeModelGroupCompartmentDetails(compartment_id=other)
    world.control.change_model_group_compartment(id, details)
    assert world.control.get_model_group(id).data.compartment_id == other


@operation
def list_model_group_models(world: World) -> None:
    id = world.group("a", "b")
    rows = world.control.list_model_group_models(id, C, sort_by="displayName").data
    assert {(row.inference_key, row.model_id) for row in rows} == {
        ("base", world.base),
        ("a", world.adapters["a"]),
        ("b", world.adapters["b"]),
    }


@operation
def create_model_group_artifact(world: World) -> None:
    id = world.homogeneous()
    answer = world.control.create_model_group_artifact(
        id, world.zips["code"], content_disposition="attachment; filename=g.zip"
    )
    assert (answer.status, answer.data) == (204, None)
    assert answer.headers["etag"]
    refused(409, "Conflict", world.control.create_model_group_artifact, world.group(), b"zip")


@operation
def get_model_group_artifact_content(world: World) -> None:
    id = world.homogeneous()
    world.control.create_model_group_artifact(id, world.zips["code"])
    part = world.control.get_model_group_artifact_content(id, range="bytes=0-3")
    assert (part.status, part.data.content) == (206, world.zips["code"][:4])


@operation
def head_model_group_artifact(world: World) -> None:
    id = world.homogeneous()
    world.control.create_model_group_artifact(id, world.zips["code"])
    headers = world.control.head_model_group_artifact(id).headers
    assert int(headers["content-length"]) == len(world.zips["code"])


# -- version histories ----------------------------------------------------------------------


@operation
def create_model_group_version_history(world: World) -> None:
    group = world.group()
    details = sdk.CreateModelGroupVersionHistoryDetails(
        compartment_id=C, project_id=P, display_name="a line", latest_model_group_id=group
    )
    call = world.waiting.create_model_group_version_history_and_wait_for_state
    made = call(details, ["ACTIVE"], waiter_kwargs=WAIT).data
    assert made.latest_model_group_id == group
    first = world.control.get_model_group(group).data
    assert (first.model_group_version_history_name, first.version_id) == ("a line", 1)
    source = sdk.CloneCreateFromModelGroupVersionHistoryDetails(source_id=made.id)
    clone = sdk.CloneModelGroupDetails(
        compartment_id=C, project_id=P, model_group_clone_source_details=source
    )
    second = world.control.create_model_group(clone).data
    assert (second.version_id, second.source_model_group_id) == (2, group)
    latest = world.control.get_model_group_version_history(made.id).data.latest_model_group_id
    assert latest == second.id


@operation
def get_model_group_version_history(world: World) -> None:
    id = world.history(description="told")
    assert world.control.get_model_group_version_history(id).data.description == "told"


@operation
def list_model_group_version_histories(world: World) -> None:
    id = world.history()
    assert [r.id for r in world.control.list_model_group_version_histories(C, id=id).data] == [id]


@operation
def update_model_group_version_history(world: World) -> None:
    details = sdk.UpdateModelGroupVersionHistoryDetails(description="new")
    call = world.waiting.update_model_group_version_history_and_wait_for_state
    changed = call(world.history(), details, ["ACTIVE"], waiter_kwargs=WAIT).data
    assert changed.description == "new"


@operation
def delete_model_group_version_history(world: World) -> None:
    id = world.history()
    call = world.waiting.delete_model_group_version_history_and_wait_for_state
    done = call(id, wait_for_states=OVER, waiter_kwargs=WAIT).data
    assert done.operation_type == "MODEL_GROUP_VERSION_HISTORY_DELETE"
    assert world.control.get_model_group_version_history(id).data.lifecycle_state == "DELETED"


@operation
def change_model_group_version_history_compartment(world: World) -> None:
    id, other = world.history(), "ocid1.compartment.oc1..other"
    details = sdk.ChangeModelGroupVersionHistoryCompartmentDetails(compartment_id=other)
    world.control.change_model_group_version_history_compartment(id, details)
    assert world.control.get_model_group_version_history(id).data.compartment_id == other
