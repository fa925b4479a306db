"""Model deployments: `/20190101/modelDeployments`, and their model states."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self, cast

from fastapi import Depends, Query, Request, Response
from pydantic import AfterValidator, Field

from stacked.api.control.base import (
    ChangeCompartment,
    Created,
    Description,
    HeadQuery,
    Json,
    ListQuery,
    RequestModel,
    Resource,
    ResponseModel,
    Updated,
)
from stacked.api.control.blocks import Block, Blocks, Environment, InstancePool, Logs
from stacked.api.control.calls import (
    Action,
    Call,
    Change,
    Create,
    Read,
    Update,
    bare,
    done,
    resource_router,
    success,
)
from stacked.deployment.activation import wanted_group
from stacked.deployment.deployments import Revision
from stacked.deployment.instances import ALONE, Instances
from stacked.errors import ParameterInvalid
from stacked.registry import DEPLOYMENT, new_id
from stacked.registry.deployments import DeploymentChanges
from stacked.registry.records import Deployment, WorkRequest
from stacked.registry.states import DeploymentState, MemberState

router = resource_router("/modelDeployments", "Deployments")

Sort = Literal["timeCreated", "displayName"]

# States in which an engine answers; during an update, mostly the committed group's.
_RUNS = (DeploymentState.ACTIVE, DeploymentState.NEEDS_ATTENTION, DeploymentState.UPDATING)


class DeploymentQuery(HeadQuery):
    sort_by: Sort | None = None
    state: DeploymentState | None = Field(None, alias="lifecycleState")


class StateQuery(ListQuery):
    sort_by: Sort | None = None
    key: str | None = Field(None, alias="inferenceKey")
    model_id: str | None = None
    display_name: str | None = None
    project_id: str | None = None


# -- requests -----------------------------------------------------------------------------


class GroupChoice(RequestModel):
    model_group_id: str = Field(min_length=1)


def _model_group(kind: str) -> str:
    if kind != "MODEL_GROUP":
        raise ValueError(f"{kind[:40]!r} is not served yet; MODEL_GROUP is")
    return kind


class Configuration(RequestModel):
    """How a group is deployed."""

    deployment_type: Annotated[str, AfterValidator(_model_group)]
    model_group_configuration_details: GroupChoice | None = None
    infrastructure_configuration_details: InstancePool | None = None
    environment_configuration_details: Environment | None = None

    def group_id(self) -> str:
        """Raises ParameterInvalid."""
        if self.model_group_configuration_details is None:
            raise ParameterInvalid("modelGroupConfigurationDetails.modelGroupId is missing")
        return self.model_group_configuration_details.model_group_id


class ConfigurationChange(Configuration):
    update_type: Literal["LIVE", "ZDT"] | None = None


def _given(details: Configuration | None, logs: Logs | None) -> dict[str, Block]:
    """The blocks of a body, by the name they are stored under."""
    blocks: dict[str, Block | None] = {"logs": logs}
    if details is not None:
        blocks["infrastructure"] = details.infrastructure_configuration_details
        blocks["environment"] = details.environment_configuration_details
    return {name: block for name, block in blocks.items() if block is not None}


class CreateDeployment(Created):
    description: Description = ""
    model_deployment_configuration_details: Configuration
    category_log_details: Logs | None = None

    def record(self, created_by: str, instances: Instances) -> Deployment:
        """Raises ParameterInvalid or NotAllowed."""
        details = self.model_deployment_configuration_details
        pool = details.infrastructure_configuration_details
        if pool is not None and pool.scaling_policy is not None:
            instances.check(pool.scaling_policy.stored())
        given = _given(details, self.category_log_details)
        blocks = {name: block.stored() for name, block in given.items()}
        return Deployment(
            id=new_id(DEPLOYMENT),
            description=self.description,
            configuration={"group": details.group_id(), **blocks},
            **self.head(created_by, named="modeldeployment"),
        )


class UpdateDeployment(Updated):
    model_deployment_configuration_details: ConfigurationChange | None = None
    category_log_details: Logs | None = None

    def revision(self, record: Deployment, instances: Instances) -> Revision:
        """The changes to a deployment. Raises ParameterInvalid or NotAllowed."""
        details = self.model_deployment_configuration_details
        blocks = Blocks.of(record, instances)
        there, given = blocks._asdict(), _given(details, self.category_log_details)
        pool = blocks.infrastructure.shown(instances)
        idle = record.state is DeploymentState.INACTIVE
        live = details is not None and details.update_type == "LIVE" and not idle
        group_id = None
        if details is not None and live:
            group_id = details.group_id()
            _check_live(given, there | {"infrastructure": pool})
            given = {name: block for name, block in given.items() if name == "logs"}
        elif details is not None and details.model_group_configuration_details is not None:
            chosen = details.group_id()
            group_id = None if chosen == wanted_group(record) else chosen
        if isinstance(block := given.get("infrastructure"), InstancePool):
            given["infrastructure"] = block.wanted(pool, instances)
        merged = {name: there[name].updated(block) for name, block in given.items()}
        changed = {name: block.stored() for name, block in merged.items() if block != there[name]}
        environment = changed.pop("environment", None)
        described = self.changes(record) | ({"configuration": changed} if changed else {})
        return Revision(group_id, environment, live, cast(DeploymentChanges, described))


def _check_live(given: Mapping[str, Block], there: Mapping[str, Block]) -> None:
    """LIVE changes only the model group; clients send the other blocks unchanged.

    Raises ParameterInvalid with the fields that differ.
    """
    found: list[str] = []
    for name in ("infrastructure", "environment"):
        if name in given:
            found += there[name].differing(given[name], f"{name}ConfigurationDetails")
    if found:
        raise ParameterInvalid(
            f"LIVE changes the model group alone, and {', '.join(found)} differs too; "
            "use updateType ZDT"
        )


# -- responses ----------------------------------------------------------------------------


class ModelGroupChoice(ResponseModel):
    model_group_id: str | None


class DeploymentConfiguration(ResponseModel):
    deployment_type: Literal["MODEL_GROUP"] = "MODEL_GROUP"
    model_group_configuration_details: ModelGroupChoice
    infrastructure_configuration_details: InstancePool
    environment_configuration_details: Environment


class SystemData(ResponseModel):
    system_infra_type: Literal["INSTANCE_POOL"] = "INSTANCE_POOL"
    model_type: Literal["MANAGED_MODEL"] = "MANAGED_MODEL"
    current_instance_count: int


class ModelDeploymentSummary(Resource):
    """A deployment in a list."""

    description: str
    lifecycle_state: DeploymentState = Field(validation_alias="state")
    model_deployment_configuration_details: DeploymentConfiguration
    category_log_details: Logs | None
    model_deployment_url: str
    model_deployment_system_data: SystemData

    @classmethod
    def of(cls, record: Any, *, url: str = "", instances: Instances = ALONE, **more: Any) -> Self:
        """`url` is this server's; clients append `/predict` to the deployment's."""
        blocks, stored = Blocks.of(record, instances), record.configuration
        group_id = record.group_id or stored.get("group")
        count = instances.running if record.state in _RUNS else 0
        details = {
            "model_group_configuration_details": {"model_group_id": group_id},
            "infrastructure_configuration_details": blocks.infrastructure.shown(instances),
            "environment_configuration_details": blocks.environment,
        }
        return super().of(
            record,
            model_deployment_configuration_details=details,
            category_log_details=blocks.logs if stored.get("logs") else None,
            model_deployment_url=f"{url}/{record.id}",
            model_deployment_system_data={"current_instance_count": count},
            **more,
        )


class ModelDeployment(ModelDeploymentSummary):
    """A deployment with the reason for its state."""

    lifecycle_details: str = Field(validation_alias="reason")


class ModelDeploymentModelStateSummary(ResponseModel):
    """The state of a member of the deployed group; `lifecycleDetails`, the reason, is ours."""

    model_id: str
    project_id: str
    display_name: str
    inference_key: str | None = Field(validation_alias="key")
    state: MemberState
    lifecycle_details: str = Field(validation_alias="reason")
    freeform_tags: Json = Field(default_factory=dict)
    defined_tags: Json = Field(default_factory=dict)
    system_tags: Json = Field(default_factory=dict)


# -- routes -------------------------------------------------------------------------------

_WORK = "opc-work-request-id"
_ACCEPTED = bare(202, _WORK)


async def _url(request: Request) -> str:
    return str(request.base_url).rstrip("/")


Url = Annotated[str, Depends(_url)]


def _instances(call: Call) -> Instances:
    """Of the deployment that is served. Blocks in a fleet."""
    service = call.service
    store, config = service.ledger.fleet, service.config.fleet
    if store is None or config is None:
        return ALONE
    ago = store.seen().ago.values()
    running = sum(seconds <= config.lease_seconds for seconds in ago)
    return Instances(max(1, running), fleet=True, ray=service.ray and service.ray())


@router.post("", responses=success("etag", _WORK))
async def create_model_deployment(
    body: CreateDeployment, url: Url, call: Create
) -> ModelDeployment:
    """It is starting; follow the work request."""
    instances = await asyncio.to_thread(_instances, call)
    new = body.record(call.caller, instances)
    record, work = await call.service.deployments.create(new)
    shown = ModelDeployment.of(record, url=url, instances=instances)
    return call.shown(record, shown, {_WORK: work.id})


@router.get("", responses=success("opc-next-page"))
def list_model_deployments(
    query: Annotated[DeploymentQuery, Query()], url: Url, call: Read
) -> list[ModelDeploymentSummary]:
    page = call.registry.deployments.list(query.reading(), **query.filters())
    shown = partial(ModelDeploymentSummary.of, url=url, instances=_instances(call))
    return call.paged(page, shown)


@router.get("/{id}", responses=success("etag"))
def get_model_deployment(id: str, url: Url, call: Read) -> ModelDeployment:
    record = call.registry.deployments.get(id)
    shown = ModelDeployment.of(record, url=url, instances=_instances(call))
    return call.shown(record, shown)


@router.put("/{id}", **_ACCEPTED)
async def update_model_deployment(id: str, body: UpdateDeployment, call: Update) -> Response:
    record = await asyncio.to_thread(call.registry.deployments.get, id)
    expect = call.expected(record)
    revision = body.revision(record, await asyncio.to_thread(_instances, call))
    return _accepted(await call.service.deployments.update(id, revision, expect))


@router.delete("/{id}", **_ACCEPTED)
async def delete_model_deployment(id: str, call: Update) -> Response:
    expect = await _expected(id, call)
    return _accepted(await call.service.deployments.delete(id, expect))


@router.post("/{id}/actions/activate", **_ACCEPTED)
async def activate_model_deployment(id: str, call: Action) -> Response:
    expect = await _expected(id, call)
    return _accepted(await call.service.deployments.activate(id, expect))


@router.post("/{id}/actions/deactivate", **_ACCEPTED)
async def deactivate_model_deployment(id: str, call: Action) -> Response:
    expect = await _expected(id, call)
    return _accepted(await call.service.deployments.deactivate(id, expect))


@router.post("/{id}/actions/changeCompartment", **bare(204, "etag"))
def change_model_deployment_compartment(id: str, body: ChangeCompartment, call: Action) -> Response:
    expect = call.expected(call.registry.deployments.get(id))
    compartment = body.compartment_id
    return done(call.registry.deployments.update(id, expect, compartment_id=compartment))


@router.get(
    "/{id}/modelStates",
    name="list_model_deployment_model_states_too",
    responses=success("opc-next-page"),
)
@router.get("/{id}/models/modelState", responses=success("opc-next-page"))
def list_model_deployment_model_states(
    id: str, query: Annotated[StateQuery, Query()], call: Read
) -> list[ModelDeploymentModelStateSummary]:
    page = call.service.member_states(id, query.reading(), **query.filters())
    return call.paged(page, ModelDeploymentModelStateSummary.of)


async def _expected(id: str, call: Change) -> Deployment | None:
    return call.expected(await asyncio.to_thread(call.registry.deployments.get, id))


def _accepted(work: WorkRequest) -> Response:
    return Response(status_code=202, headers={_WORK: work.id})
