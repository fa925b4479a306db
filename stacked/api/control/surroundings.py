"""What clients look up before they deploy: containers, shapes, projects, compute targets.

Nothing here is recorded: this server is one machine with one container and one project.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Annotated, Literal, TypeVar

from fastapi import Query
from pydantic import Field

from stacked.api.control.base import COMPARTMENT, Json, Paged, ResponseModel
from stacked.api.control.calls import Call, Read, resource_router, success
from stacked.config import ServerConfig
from stacked.engine.machine import GIB, look
from stacked.errors import PageInvalid

VERSION = version("stacked")
LOCAL = "LOCAL"
"""The shape name of this machine; every other name means it too."""

# The families of AQUA's inference containers that run vLLM: a model's metadata names one.
FAMILIES = tuple(f"odsc-vllm-serving{more}" for more in ("", "-v1", "-llama4", "-openai"))

R = TypeVar("R")
Lifecycle = Literal["ACTIVE", "INACTIVE"]
Target = Literal["MODEL_DEPLOYMENT", "JOB_RUN"]
Usage = Literal["INFERENCE", "FINE_TUNE", "EVALUATION", "BATCH_INFERENCE", "OTHER"]

router = resource_router("", "Surroundings")


class PlainQuery(Paged):
    compartment_id: str | None = COMPARTMENT


class ContainerQuery(PlainQuery):
    is_latest: bool | None = None
    display_name: str | None = None
    container_name: str | None = None
    lifecycle_state: Lifecycle | None = None
    target_workload: Target | None = None
    usage_query_param: Usage | None = None
    tag_query_param: str | None = None

    def takes(self, one: ContainerSummary) -> bool:
        pairs = (
            (self.is_latest, one.is_latest),
            (self.display_name, one.display_name),
            (self.container_name, one.container_name),
            (self.lifecycle_state, one.lifecycle_state),
            (self.tag_query_param, one.tag),
        )
        return (
            all(wanted in (None, there) for wanted, there in pairs)
            and self.target_workload in (None, *one.target_workloads)
            and self.usage_query_param in (None, *one.usages)
        )


class Workload(ResponseModel):
    """How AQUA starts a container: its fixed flags, ports and environment variables."""

    workload_type: Target
    cmd: str
    server_port: int
    health_check_port: int
    additional_configurations: dict[str, str]


class ContainerSummary(ResponseModel):
    container_name: str
    display_name: str
    family_name: str
    description: str
    is_latest: bool
    target_workloads: list[Target]
    usages: list[Usage]
    tag: str
    lifecycle_state: Lifecycle
    workload_configuration_details_list: list[Workload]
    tag_configuration_list: list[Json]
    freeform_tags: Json
    defined_tags: Json


class ModelDeploymentShapeSummary(ResponseModel):
    name: str
    core_count: int
    memory_in_gbs: Annotated[int, Field(alias="memoryInGBs")]
    shape_series: Literal["NVIDIA_GPU", "GENERIC"]


@router.get("/containers", responses=success("opc-next-page"))
def list_containers(
    query: Annotated[ContainerQuery, Query()], call: Read
) -> list[ContainerSummary]:
    return _page(filter(query.takes, _containers(call.service.config.server)), query, call)


@router.get("/modelDeploymentShapes", responses=success("opc-next-page"))
def list_model_deployment_shapes(
    query: Annotated[PlainQuery, Query()], call: Read
) -> list[ModelDeploymentShapeSummary]:
    return _page(_shapes(call.service.config.server), query, call)


@router.get("/projects", responses=success("opc-next-page"), name="list_projects")
@router.get("/computeTargets", responses=success("opc-next-page"), name="list_compute_targets")
def list_nothing(query: Annotated[PlainQuery, Query()], call: Read) -> list[Json]:
    return _page((), query, call)


def _containers(server: ServerConfig) -> list[ContainerSummary]:
    """This server under the name of each container family that it can replace."""
    port = str(server.port or ServerConfig().port)
    environment = {
        "MODEL_DEPLOY_PREDICT_ENDPOINT": server.predict_endpoint or "/v1/completions",
        "PORT": port,
        "HEALTH_CHECK_PORT": port,
        "modelFormats": "SAFETENSORS",
        "platforms": "NVIDIA_GPU",
        "restrictedParams": "[]",
        "evaluationConfiguration": "{}",
    }
    workload = Workload(
        workload_type="MODEL_DEPLOYMENT",
        cmd="--served-model-name odsc-llm --seed 42",
        server_port=int(port),
        health_check_port=int(port),
        additional_configurations=environment,
    )
    return [
        ContainerSummary(
            container_name=family,
            display_name=f"Stacked {VERSION}",
            family_name=family,
            description="vLLM in this server; the image of a deployment is stored, not pulled",
            is_latest=True,
            target_workloads=["MODEL_DEPLOYMENT"],
            usages=["INFERENCE"],
            tag=VERSION,
            lifecycle_state="ACTIVE",
            workload_configuration_details_list=[workload],
            tag_configuration_list=[],
            freeform_tags={},
            defined_tags={},
        )
        for family in FAMILIES
    ]


def _shapes(server: ServerConfig) -> list[ModelDeploymentShapeSummary]:
    """This machine under each of its names."""
    machine = look()
    return [
        ModelDeploymentShapeSummary(
            name=name,
            core_count=machine.cores,
            memory_in_gbs=round(machine.memory_bytes / GIB),
            shape_series="NVIDIA_GPU" if machine.gpus else "GENERIC",
        )
        for name in dict.fromkeys((LOCAL, *server.shape_names))
    ]


def _page(rows: Iterable[R], query: Paged, call: Call) -> list[R]:
    """A page of a list that does not change; its token is the index of its first row."""
    all_ = list(rows)
    page = query.page or "0"
    if not (page.isascii() and page.isdigit()) or int(page[:9]) > len(all_):
        raise PageInvalid("the page token is not one of this list; begin without a token")
    first = int(page)
    if first + query.limit < len(all_):
        call.headers["opc-next-page"] = str(first + query.limit)
    return all_[first : first + query.limit]
