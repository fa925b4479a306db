"""The operations on models, their artifacts, metadata and provenance.

One function an operation; the table of `operations` calls them in their order.
"""

from __future__ import annotations

from typing import Any

from oci.data_science import models as sdk

from tests.contract.operations.table import OPERATIONS, Check, operation
from tests.contract.world import WAIT, C, P, World, refused


@operation
def create_model(world: World) -> None:
    details = sdk.CreateModelDetails(
        compartment_id=C,
        project_id=P,
        display_name="told",
        description="of",
        freeform_tags={"a": "b"},
        defined_tags={"n": {"k": "v"}},
        custom_metadata_list=[sdk.Metadata(key="k", value="v", category="Other", keywords=["w"])],
        defined_metadata_list=[sdk.Metadata(key="Taxonomy", value="{}")],
        input_schema="{}",
        version_label="one",
        retention_setting=sdk.RetentionSetting(archive_after_days=7),
    )
    waiting = world.waiting.create_model_and_wait_for_state
    model = waiting(details, wait_for_states=["ACTIVE"], waiter_kwargs=WAIT).data
    assert (model.display_name, model.description, model.version_label) == ("told", "of", "one")
    assert (model.freeform_tags, model.defined_tags) == ({"a": "b"}, {"n": {"k": "v"}})
    assert [(m.key, m.value, m.keywords) for m in model.custom_metadata_list] == [("k", "v", ["w"])]
    assert model.retention_setting.archive_after_days == 7
    assert (model.category, model.is_model_by_reference) == ("USER", False)
    assert model.created_by == world.control.base_client.config["user"]


@operation
def get_model(world: World) -> None:
    answer = world.control.get_model(world.adapters["a"])
    shown = {item.key: item.value for item in answer.data.custom_metadata_list}
    assert shown["kind"] == "adapter"
    assert shown["baseModelId"] == world.base
    assert answer.headers["etag"]


@operation
def list_models(world: World) -> None:
    rows = world.control.list_models(C, limit=100).data
    assert {world.base, *world.adapters.values()} <= {row.id for row in rows}


@operation
def update_model(world: World) -> None:
    id = world.model(display_name="before")
    waiting = world.waiting.update_model_and_wait_for_state
    details = sdk.UpdateModelDetails(display_name="after", freeform_tags={"x": "y"})
    model = waiting(id, details, wait_for_states=["ACTIVE"], waiter_kwargs=WAIT).data
    assert (model.display_name, model.freeform_tags) == ("after", {"x": "y"})


@operation
def deactivate_model(world: World) -> None:
    id = world.model()
    waiting = world.waiting.deactivate_model_and_wait_for_state
    assert waiting(id, ["INACTIVE"], waiter_kwargs=WAIT).data.lifecycle_state == "INACTIVE"


@operation
def activate_model(world: World) -> None:
    id = world.model()
    world.control.deactivate_model(id)
    waiting = world.waiting.activate_model_and_wait_for_state
    assert waiting(id, ["ACTIVE"], waiter_kwargs=WAIT).data.lifecycle_state == "ACTIVE"


@operation
def delete_model(world: World) -> None:
    id = world.model()
    world.waiting.delete_model_and_wait_for_state(id, ["DELETED"], waiter_kwargs=WAIT)
    assert world.control.get_model(id).data.lifecycle_state == "DELETED"


@operation
def change_model_compartment(world: World) -> None:
    id = world.model()
    details = sdk.ChangeModelCompartmentDetails(compartment_id="ocid1.compartment.oc1..other")
    assert world.control.change_model_compartment(id, details).data is None
    assert world.control.get_model(id).data.compartment_id == "ocid1.compartment.oc1..other"


@operation
def create_model_artifact(world: World) -> None:
    """Bytes, which the SDK calls JSON; files are what `World.uploaded` sends."""
    id = world.model()
    answer = world.control.create_model_artifact(id, world.zips["spare"])
    assert (answer.status, answer.data) == (204, None)
    assert answer.headers["etag"] == world.control.get_model(id).headers["etag"]


@operation
def get_model_artifact_content(world: World) -> None:
    id, zip = world.adapters["a"], world.zips["a"]
    answer = world.control.get_model_artifact_content(id)
    assert answer.data.content == zip
    assert answer.headers["content-disposition"] == "attachment; filename=artifact.zip"
    part = world.control.get_model_artifact_content(id, range="bytes=2-9")
    assert (part.status, part.data.content) == (206, zip[2:10])


@operation
def head_model_artifact(world: World) -> None:
    headers = world.control.head_model_artifact(world.adapters["a"]).headers
    assert int(headers["content-length"]) == len(world.zips["a"])
    assert headers["content-md5"]


def _export() -> sdk.ExportModelArtifactDetails:
    return sdk.ExportModelArtifactDetails(
        artifact_export_details=sdk.ArtifactExportDetailsObjectStorage(
            namespace="n", source_bucket="b", source_object_name="o", source_region="r"
        )
    )


@operation
def export_model_artifact(world: World) -> None:
    said = refused(
        501, "MethodNotImplemented", world.control.export_model_artifact, world.base, _export()
    )
    assert "POST …/artifact" in said


@operation
def import_model_artifact(world: World) -> None:
    details = sdk.ImportModelArtifactDetails(
        artifact_import_details=sdk.ArtifactImportDetailsObjectStorage(
            namespace="n", destination_bucket="b", destination_object_name="o"
        )
    )
    refused(501, "MethodNotImplemented", world.control.import_model_artifact, world.base, details)


@operation
def register_model_artifact_reference(world: World) -> None:
    reference = sdk.OSSModelArtifactReferenceDetails(namespace="n", bucket_name="b")
    details = sdk.RegisterModelArtifactReferenceDetails(model_artifact_references=[reference])
    call = world.control.register_model_artifact_reference
    refused(501, "MethodNotImplemented", call, world.base, details)


@operation
def restore_archived_model_artifact(world: World) -> None:
    call = world.control.restore_archived_model_artifact
    refused(501, "MethodNotImplemented", call, world.base, restore_model_for_hours_specified=1)


def _metadatum(kind: str) -> None:
    """The five operations on the artifact of a metadatum, custom or defined."""

    def made(world: World) -> str:
        id = world.model()
        call(world, "create")(id, "notes", b"one", content_disposition="attachment; filename=n.md")
        return id

    def call(world: World, verb: str, last: str = "") -> Any:
        return getattr(world.control, f"{verb}_model_{kind}_metadatum_artifact{last}")

    def create(world: World) -> None:
        id = made(world)
        assert call(world, "get", "_content")(id, "notes").data.content == b"one"
        refused(409, "Conflict", call(world, "create"), id, "notes", b"two")

    def update(world: World) -> None:
        id = made(world)
        call(world, "update")(id, "notes", b"two")
        assert call(world, "get", "_content")(id, "notes").data.content == b"two"

    def get(world: World) -> None:
        part = call(world, "get", "_content")(made(world), "notes", range="bytes=-2")
        assert (part.status, part.data.content) == (206, b"ne")

    def head(world: World) -> None:
        headers = call(world, "head")(made(world), "notes").headers
        assert headers["content-length"] == "3"
        assert headers["content-disposition"] == "attachment; filename=n.md"

    def delete(world: World) -> None:
        id = made(world)
        assert call(world, "delete")(id, "notes").status == 204
        code = "NotAuthorizedOrNotFound"
        refused(404, code, call(world, "get", "_content"), id, "notes")

    for verb, check in (("create", create), ("update", update), ("head", head), ("delete", delete)):
        OPERATIONS[f"{verb}_model_{kind}_metadatum_artifact"] = check
    OPERATIONS[f"get_model_{kind}_metadatum_artifact_content"] = get


_metadatum("custom")
_metadatum("defined")


@operation
def create_model_provenance(world: World) -> None:
    details = sdk.CreateModelProvenanceDetails(git_branch="main", training_id="t")
    made = world.control.create_model_provenance(world.model(), details).data
    assert (made.git_branch, made.training_id, made.script_dir) == ("main", "t", None)


@operation
def get_model_provenance(world: World) -> None:
    id = world.model()
    refused(404, "NotAuthorizedOrNotFound", world.control.get_model_provenance, id)
    world.control.create_model_provenance(id, sdk.CreateModelProvenanceDetails(git_commit="c"))
    assert world.control.get_model_provenance(id).data.git_commit == "c"


@operation
def update_model_provenance(world: World) -> None:
    id = world.model()
    world.control.create_model_provenance(id, sdk.CreateModelProvenanceDetails(git_commit="c"))
    details = sdk.UpdateModelProvenanceDetails(git_branch="b")
    changed = world.control.update_model_provenance(id, details).data
    assert (changed.git_branch, changed.git_commit) == ("b", "c")


# -- artifact signatures, which are not there -----------------------------------------------


def _signatures() -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "create_model_artifact_signature": ({},),
        "get_model_artifact_signature": ("s",),
        "list_model_artifact_signatures": (C,),
        "update_model_artifact_signature": ("s", {}),
        "delete_model_artifact_signature": ("s",),
        "verify_model_artifact_signature": ("s",),
        "change_model_artifact_signature_compartment": ("s", {}),
    }

    def check(name: str, given: tuple[Any, ...]) -> Check:
        def refuses(world: World) -> None:
            call = getattr(world.control, name)
            hooks = world.control.base_client.session.hooks["response"]
            kept = hooks.copy()
            hooks.clear()  # they are not in the document either
            try:
                refused(404, "NotAuthorizedOrNotFound", call, world.base, *given)
            finally:
                hooks.extend(kept)

        return refuses

    for name, given in arguments.items():
        OPERATIONS[name] = check(name, given)


_signatures()
