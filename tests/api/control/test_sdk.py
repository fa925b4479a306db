"""OCI's own SDK, unmodified, against the catalogue: signed, over HTTP, through the gateway."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import oci
import pytest
from oci.data_science import DataScienceClient, DataScienceClientCompositeOperations
from oci.data_science import models as sdk
from oci.exceptions import ServiceError

from stacked.api.gate import open_gate
from stacked.api.gateway import Gateway
from tests.api.control.plane import BASE, GROUP, Plane, control_plane, packed
from tests.api.doors import sdk_config, served


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with control_plane(tmp_path_factory.mktemp("plane"), auth={"oci": True}) as made:
        yield made


@pytest.fixture(scope="module")
def client(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataScienceClient]:
    data_dir = tmp_path_factory.mktemp("data")
    config = sdk_config(data_dir)
    door = Gateway(plane.service, plane.http.app, open_gate(plane.service.config, data_dir))
    with served(door) as url:
        yield DataScienceClient(config, service_endpoint=url)


@pytest.fixture(scope="module")
def waiting(client: DataScienceClient) -> DataScienceClientCompositeOperations:
    return DataScienceClientCompositeOperations(client)


def create(client: DataScienceClient, **more: Any) -> sdk.Model:
    details = sdk.CreateModelDetails(compartment_id="c", project_id="p", **more)
    return cast(sdk.Model, client.create_model(details).data)


def adapter(client: DataScienceClient, plane: Plane, seed: int) -> str:
    made = create(client, display_name=f"adapter {seed}")
    client.create_model_artifact(made.id, packed(plane.roots, seed))
    return cast(str, made.id)


def stacked(*entries: tuple[str, str], **more: Any) -> sdk.CreateBaseModelGroupDetails:
    members = [
        sdk.MemberModelDetails(model_id=id, inference_key=key)
        for id, key in ((BASE, "base"), *entries)
    ]
    return sdk.CreateModelGroupDetails(
        compartment_id="c",
        project_id="p",
        model_group_details=sdk.StackedModelGroupDetails(base_model_id=BASE),
        member_model_entries=sdk.MemberModelEntries(member_model_details=members),
        **more,
    )


def clone(details: Any) -> sdk.CloneModelGroupDetails:
    return sdk.CloneModelGroupDetails(
        compartment_id="c", project_id="p", model_group_clone_source_details=details
    )


def test_a_model_lives_its_whole_life(
    client: DataScienceClient, waiting: DataScienceClientCompositeOperations, plane: Plane
) -> None:
    details = sdk.CreateModelDetails(
        compartment_id="c",
        project_id="p",
        display_name="whole",
        freeform_tags={"a": "b"},
        defined_tags={"ns": {"k": "v"}},
        custom_metadata_list=[sdk.Metadata(key="k", value="v", category="Other", keywords=["w"])],
        defined_metadata_list=[sdk.Metadata(key="UseCaseType", value="ner")],
        input_schema="{}",
        output_schema="{}",
        retention_setting=sdk.RetentionSetting(archive_after_days=3),
        backup_setting=sdk.BackupSetting(is_backup_enabled=False, backup_region="r"),
    )
    made = waiting.create_model_and_wait_for_state(details, wait_for_states=["ACTIVE"]).data
    assert made.created_by.startswith("ocid1.user."), "who signed"
    assert made.time_created.tzinfo is not None
    assert made.custom_metadata_list[0].keywords == ["w"]
    assert (made.retention_setting.archive_after_days, made.category) == (3, "USER")
    id = made.id
    sent = packed(plane.roots, 1)
    etag = client.get_model(id).headers["etag"]
    put = client.create_model_artifact(
        id, io.BytesIO(sent), content_disposition='attachment; filename="m.zip"', if_match=etag
    )
    assert put.status == 204
    head = client.head_model_artifact(id).headers
    assert head["content-length"] == str(len(sent))
    assert head["content-disposition"] == "attachment; filename=artifact.zip"
    assert client.get_model_artifact_content(id).data.content == sent
    part = client.get_model_artifact_content(id, range="bytes=0-3")
    assert (part.status, part.data.content) == (206, sent[:4])
    update = sdk.UpdateModelDetails(display_name="new", custom_metadata_list=[])
    changed = waiting.update_model_and_wait_for_state(id, update, wait_for_states=["ACTIVE"]).data
    assert (changed.display_name, changed.freeform_tags) == ("new", {"a": "b"})
    waiting.deactivate_model_and_wait_for_state(id, wait_for_states=["INACTIVE"])
    waiting.activate_model_and_wait_for_state(id, wait_for_states=["ACTIVE"])
    client.change_model_compartment(id, sdk.ChangeModelCompartmentDetails(compartment_id="other"))
    provenance = sdk.CreateModelProvenanceDetails(git_branch="main")
    client.create_model_provenance(id, provenance)
    client.update_model_provenance(id, sdk.UpdateModelProvenanceDetails(git_commit="1"))
    read = client.get_model_provenance(id).data
    assert (read.git_branch, read.git_commit) == ("main", "1")
    waiting.delete_model_and_wait_for_state(id, wait_for_states=["DELETED"])
    assert client.get_model(id).data.lifecycle_state == "DELETED"


@pytest.mark.parametrize("kind", ["custom", "defined"])
def test_artifacts_of_metadata(client: DataScienceClient, kind: str) -> None:
    id = create(client).id

    def call(verb: str, *more: Any) -> Any:
        ending = "_content" if verb == "get" else ""
        name = f"{verb}_model_{kind}_metadatum_artifact{ending}"
        return getattr(client, name)(id, "Read me", *more)

    call("create", b"# One")
    call("update", io.BytesIO(b"# Two"))
    assert call("get").data.content == b"# Two"
    assert call("head").headers["content-length"] == "5"
    call("delete")
    with pytest.raises(ServiceError) as caught:
        call("get")
    assert (caught.value.status, caught.value.code) == (404, "NotAuthorizedOrNotFound")


def test_a_file_is_streamed_from_the_disk_and_back(
    client: DataScienceClient, plane: Plane, tmp_path: Path
) -> None:
    id, path = create(client).id, tmp_path / "adapter.zip"
    path.write_bytes(packed(plane.roots, 2))
    with path.open("rb") as file:
        client.create_model_artifact(id, file)
    back = b"".join(client.get_model_artifact_content(id).data.iter_content(1000))
    assert back == path.read_bytes()


def test_a_large_upload_that_is_refused_is_told_why(client: DataScienceClient) -> None:
    id = create(client).id
    for headers, status, code in (
        ({"if_match": "another"}, 412, "NoEtagMatch"),
        ({}, 400, "ArchiveInvalid"),
    ):
        with pytest.raises(ServiceError) as caught:
            client.create_model_artifact(id, io.BytesIO(bytes(8_000_000)), **headers)
        assert (caught.value.status, caught.value.code) == (status, code)


def test_groups_and_histories_live_their_whole_life(
    client: DataScienceClient, waiting: DataScienceClientCompositeOperations, plane: Plane
) -> None:
    one, two, three = (adapter(client, plane, seed) for seed in (1, 2, 3))
    line = waiting.create_model_group_version_history_and_wait_for_state(
        sdk.CreateModelGroupVersionHistoryDetails(
            compartment_id="c", project_id="p", display_name="line"
        ),
        wait_for_states=["ACTIVE"],
    ).data
    details = stacked(
        (one, "a"), (two, "b"), display_name="first", model_group_version_history_id=line.id
    )
    done = waiting.create_model_group_and_wait_for_state(details, wait_for_states=["SUCCEEDED"])
    first = done.data.resources[0].identifier
    read = client.get_model_group(first).data
    assert isinstance(read.model_group_details, sdk.StackedModelGroupDetails)
    assert read.model_group_details.custom_metadata_list == []
    assert [m.inference_key for m in read.member_model_entries.member_model_details] == [
        "base",
        "a",
        "b",
    ]
    patches = sdk.PatchModelGroupMemberModelDetails(
        items=[
            sdk.PatchInsertNewMemberModels(
                values=[sdk.MemberModelDetails(model_id=three, inference_key="a")]
            ),
            sdk.PatchRemoveMemberModels(values=[sdk.MemberModelDetails(model_id=one)]),
        ]
    )
    source = sdk.CloneCreateFromModelGroupVersionHistoryDetails(
        source_id=line.id,
        modify_model_group_details=sdk.ModifyModelGroupDetails(display_name="second"),
        patch_model_group_member_model_details=patches,
    )
    second = client.create_model_group(clone(source)).data
    assert (second.version_id, second.create_type) == (2, "CLONE")
    assert second.model_group_version_history_name == "line"
    assert client.get_model_group_version_history(line.id).data.latest_model_group_id == second.id
    third = client.create_model_group(
        clone(sdk.CloneCreateFromModelGroupDetails(source_id=second.id))
    ).data
    assert third.source_model_group_id == second.id
    rows = client.list_model_group_models(second.id, "c", sort_by="displayName").data
    assert [row.inference_key for row in rows] == ["b", "a", "base"]
    update = sdk.UpdateModelGroupDetails(version_label="v2")
    waiting.update_model_group_and_wait_for_state(second.id, update, wait_for_states=["ACTIVE"])
    for verb, state in (("deactivate", "INACTIVE"), ("activate", "ACTIVE")):
        call = getattr(waiting, f"{verb}_model_group_and_wait_for_state")
        assert call(second.id, wait_for_states=[state]).data.lifecycle_state == state
    move = sdk.ChangeModelGroupCompartmentDetails(compartment_id="other")
    client.change_model_group_compartment(second.id, move)
    waiting.delete_model_group_and_wait_for_state(second.id, wait_for_states=["SUCCEEDED"])
    assert client.get_model_group(second.id).data.lifecycle_state == "DELETED"
    client.update_model_group_version_history(
        line.id, sdk.UpdateModelGroupVersionHistoryDetails(description="d")
    )
    client.change_model_group_version_history_compartment(
        line.id, sdk.ChangeModelGroupVersionHistoryCompartmentDetails(compartment_id="o")
    )
    (row,) = client.list_model_group_version_histories("c", display_name="line").data
    assert row.latest_model_group_id == first
    waiting.delete_model_group_version_history_and_wait_for_state(
        line.id, wait_for_states=["SUCCEEDED"]
    )


def test_the_artifact_of_a_homogeneous_group(client: DataScienceClient, plane: Plane) -> None:
    members = sdk.MemberModelEntries(
        member_model_details=[sdk.MemberModelDetails(model_id=create(client).id)]
    )
    made = client.create_model_group(
        sdk.CreateModelGroupDetails(
            compartment_id="c",
            project_id="p",
            model_group_details=sdk.HomogeneousModelGroupDetails(),
            member_model_entries=members,
        )
    ).data
    assert isinstance(made.model_group_details, sdk.HomogeneousModelGroupDetails)
    assert client.create_model_group_artifact(made.id, b"score").status == 204
    assert client.head_model_group_artifact(made.id).headers["content-length"] == "5"
    assert client.get_model_group_artifact_content(made.id).data.content == b"score"


def test_pages_are_followed_to_their_end(client: DataScienceClient) -> None:
    made = {create(client, display_name="paged").id for _ in range(7)}
    listed = oci.pagination.list_call_get_all_results(
        client.list_models, "c", display_name="paged", limit=3
    ).data
    assert {row.id for row in listed} == made
    assert len(listed) == 7


def test_what_needs_object_storage_is_refused_at_once(client: DataScienceClient) -> None:
    details = sdk.ExportModelArtifactDetails(
        artifact_export_details=sdk.ArtifactExportDetailsObjectStorage(
            namespace="n", source_bucket="b", source_object_name="o", source_region="r"
        )
    )
    with pytest.raises(ServiceError) as caught:
        client.export_model_artifact(create(client).id, details)
    assert (caught.value.status, caught.value.code) == (501, "MethodNotImplemented")


def test_a_conflict_is_raised_at_once(client: DataScienceClient) -> None:
    with pytest.raises(ServiceError) as caught:
        client.delete_model_group(GROUP)
    assert (caught.value.status, caught.value.code) == (409, "Conflict")
    assert not isinstance(caught.value, oci.exceptions.TransientServiceError)
