"""The operations on version sets of models, as the notebooks begin with them."""

from __future__ import annotations

from oci.data_science import models as sdk

from tests.contract.operations.table import operation
from tests.contract.world import OVER, WAIT, C, P, World, refused


def made(world: World, **more: str) -> str:
    """A version set; its id."""
    details = sdk.CreateModelVersionSetDetails(
        compartment_id=C, project_id=P, name=world.name("set"), **more
    )
    return str(world.control.create_model_version_set(details).data.id)


@operation
def create_model_version_set(world: World) -> None:
    name = world.name("set")
    details = sdk.CreateModelVersionSetDetails(
        compartment_id=C, project_id=P, name=name, description="d", freeform_tags={"a": "b"}
    )
    call = world.waiting.create_model_version_set_and_wait_for_state
    kept = call(details, ["ACTIVE"], waiter_kwargs=WAIT).data
    assert (kept.name, kept.description, kept.freeform_tags) == (name, "d", {"a": "b"})
    assert (kept.category, kept.project_id) == ("USER", P)
    assert name in refused(409, "Conflict", world.control.create_model_version_set, details)
    versions = [
        world.control.get_model(world.model(model_version_set_id=kept.id, version_label=label)).data
        for label in ("first", "second")
    ]
    assert [(one.version_id, one.version_label) for one in versions] == [
        (1, "first"),
        (2, "second"),
    ]
    assert {one.model_version_set_name for one in versions} == {name}
    of_set = world.control.list_models(C, model_version_set_name=name).data
    assert {row.id for row in of_set} == {one.id for one in versions}


@operation
def get_model_version_set(world: World) -> None:
    id = made(world, description="told")
    assert world.control.get_model_version_set(id).data.description == "told"
    refused(404, "NotAuthorizedOrNotFound", world.control.get_model_version_set, "ocid1.none")


@operation
def list_model_version_sets(world: World) -> None:
    id = made(world)
    name = world.control.get_model_version_set(id).data.name
    (row,) = world.control.list_model_version_sets(C, name=name, sort_by="name").data
    assert row.id == id
    assert world.control.list_model_version_sets(C, category="SERVICE").data == []


@operation
def update_model_version_set(world: World) -> None:
    details = sdk.UpdateModelVersionSetDetails(description="new", freeform_tags={"c": "d"})
    call = world.waiting.update_model_version_set_and_wait_for_state
    changed = call(made(world), details, ["ACTIVE"], waiter_kwargs=WAIT).data
    assert (changed.description, changed.freeform_tags) == ("new", {"c": "d"})


@operation
def delete_model_version_set(world: World) -> None:
    id = made(world)
    model = world.model(model_version_set_id=id)
    call = world.control.delete_model_version_set
    assert model in refused(409, "Conflict", call, id)
    wait = world.waiting.delete_model_version_set_and_wait_for_state
    more = {"is_delete_related_models": True}
    work = wait(id, OVER, operation_kwargs=more, waiter_kwargs=WAIT).data
    assert (work.operation_type, work.status) == ("MODELVERSIONSET_DELETE", "SUCCEEDED")
    assert world.control.get_model(model).data.lifecycle_state == "DELETED"
    assert world.control.get_model_version_set(id).data.lifecycle_state == "DELETED"


@operation
def change_model_version_set_compartment(world: World) -> None:
    id, other = made(world), "ocid1.compartment.oc1..other"
    details = sdk.ChangeModelVersionSetCompartmentDetails(compartment_id=other)
    call = world.waiting.change_model_version_set_compartment_and_wait_for_state
    call(id, details, OVER, waiter_kwargs=WAIT)
    assert world.control.get_model_version_set(id).data.compartment_id == other
