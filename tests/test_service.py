"""What a process serves when it starts: what its file declares, what was served last, or nothing.

Engines are doubles; records, stores and bases are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, event

from stacked.config import (
    BaseConfig,
    Config,
    ControlConfig,
    GroupConfig,
    MemberConfig,
    ServerConfig,
    StorageConfig,
    SupervisionConfig,
)
from stacked.deployment.deployments import Revision
from stacked.engine.plan import EnginePlan
from stacked.errors import (
    DataDirInUse,
    EngineDead,
    EngineError,
    EngineStartFailed,
    NotReady,
    ParameterInvalid,
    RankRefused,
    RecordConflict,
    RegistryUnusable,
    SourceNotFound,
)
from stacked.registry import DEPLOYMENT, MODEL, Deployment, Model, ModelState, Query, new_id
from stacked.service import Service, State
from stacked.serving import Commit
from stacked.serving.vllm import VllmPrepared, VllmServing
from stacked.steps import Progress
from stacked.supervision import supervisor
from tests.deployments.machine import engine_of, served
from tests.postgres import Postgres
from tests.store.small import write_adapter, write_base
from tests.waiting import until_async


class Engines:
    """Stands in for `Serving.start`: what was started with what, and what the next start raises."""

    def __init__(self) -> None:
        self.plans: list[EnginePlan] = []
        self.fails: EngineStartFailed | None = None

    async def start(
        self, prepared: VllmPrepared, commit: Commit, server: ServerConfig, tell: Progress
    ) -> VllmServing:
        self.plans.append(prepared.plan)
        if self.fails is not None:
            raise self.fails
        return await served(prepared, commit, 1)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    made = Engines()
    monkeypatch.setattr(VllmServing, "start", made.start)
    return made


class Place:
    """A data directory with a base and adapters, and the services that start in it."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.base = write_base(directory / "base")
        for name, seed in (("a", 1), ("b", 2), ("c", 3)):
            write_adapter(directory / name, seed=seed)
        self.directory = directory

    def config(self, *names: str, **engine: Any) -> Config:
        members = tuple(MemberConfig(source=str(self.directory / name), key=name) for name in names)
        return Config(
            base=BaseConfig(model=str(self.base)),
            group=GroupConfig(members=members),
            engine=engine,
        )

    async def start(self, config: ControlConfig) -> Service:
        service = Service(config, self.data, durable=True)
        await service.start()
        await service.deployments.wait()
        return service


@pytest.fixture
def place(tmp_path: Path, engines: Engines) -> Place:
    return Place(tmp_path)


def keys(service: Service) -> list[str]:
    return [route.label for route in service.routing]


def state(service: Service, id: str) -> str:
    return service.registry.deployments.get(id).state.value


async def create(service: Service, group_id: str | None) -> str:
    """Deploy a group over the control plane; the deployment's id."""
    assert group_id is not None
    new = Deployment(id=new_id(DEPLOYMENT), configuration={"group": group_id})
    await service.deployments.create(new)
    await service.deployments.wait()
    return new.id


async def test_server_without_a_file_has_nothing_and_says_what_to_do(place: Place) -> None:
    service = await place.start(ControlConfig())
    try:
        assert service.state is State.SERVING
        with pytest.raises(NotReady, match="nothing is deployed here; create"):
            _ = service.active
        assert service.registry.deployments.list().items == ()
        service.check_live()
    finally:
        await service.close()


async def test_file_is_served_and_the_same_file_registers_nothing_twice(place: Place) -> None:
    config = place.config("a", "b")
    ids = []
    for _ in range(2):
        service = await place.start(config)
        assert keys(service) == ["base", "a", "b"]
        ids.append(service.active.deployment_id)
        service.deployments.check_served(ids[-1])
        assert state(service, ids[-1]) == "ACTIVE"
        assert service.routing.generation == 1
        await service.close()
    assert ids[0] == ids[1]


async def test_what_a_file_served_is_served_again_without_the_file(place: Place) -> None:
    first = await place.start(place.config("a", max_loras=3))
    id = first.active.deployment_id
    await first.close()
    service = await place.start(ControlConfig())
    try:
        assert (keys(service), service.active.deployment_id) == (["base", "a"], id)
        assert service.routing.generation == 1
    finally:
        await service.close()


async def test_another_machine_serves_what_one_served(
    place: Place, postgres: Postgres, tmp_path: Path
) -> None:
    contents = str(tmp_path / "shared")
    storage = StorageConfig(database=SecretStr(postgres.url()), contents=contents)
    group = GroupConfig(name=new_id(DEPLOYMENT)[-12:])  # a schema of its own
    file = place.config("a", "b")
    named = file.group.model_copy(update={"name": group.name})
    first = await place.start(file.model_copy(update={"storage": storage, "group": named}))
    id = first.active.deployment_id
    with pytest.raises(DataDirInUse):
        await Service(
            ControlConfig(storage=storage, group=group), tmp_path / "other", durable=True
        ).start()
    await first.close()
    shutil.rmtree(place.data)  # with the machine
    place.data = tmp_path / "other"
    service = await place.start(ControlConfig(storage=storage, group=group))
    try:
        assert (keys(service), service.active.deployment_id) == (["base", "a", "b"], id)
        assert state(service, id) == "ACTIVE"
    finally:
        await service.close()


async def test_update_of_a_files_deployment_is_served_until_the_file_changes(
    place: Place, engines: Engines
) -> None:
    service = await place.start(place.config("a", max_loras=2))
    declared = service.registry.deployments.get(service.active.deployment_id).group_id
    await service.close()
    service = await place.start(place.config("b", max_loras=2))
    environment = {"environmentVariables": {"PARAMS": "--max-loras 5"}}
    await service.deployments.update(service.active.deployment_id, Revision(declared, environment))
    await service.deployments.wait()
    assert (keys(service), engines.plans[-1].slots) == (["base", "a"], 5)
    await service.close()
    service = await place.start(place.config("b", max_loras=2))
    assert (keys(service), engines.plans[-1].slots) == (["base", "a"], 5)
    await service.close()
    service = await place.start(place.config("c", max_loras=2))
    assert (keys(service), engines.plans[-1].slots) == (["base", "c"], 2)
    record = service.registry.deployments.get(service.active.deployment_id)
    assert record.configuration["environment"] is None
    await service.close()


async def test_deployment_that_was_made_over_http_is_served_again_until_the_file_changes(
    place: Place,
) -> None:
    service = await place.start(place.config("a"))
    of_file = service.active.deployment_id
    group_a = service.registry.deployments.get(of_file).group_id
    await service.deployments.deactivate(of_file)
    await service.deployments.wait()
    made = await create(service, group_a)
    await service.close()
    service = await place.start(place.config("a"))
    assert (service.active.deployment_id, state(service, of_file)) == (made, "INACTIVE")
    await service.close()
    service = await place.start(place.config("b"))
    assert (service.active.deployment_id, keys(service)) == (of_file, ["base", "b"])
    assert state(service, made) == "INACTIVE"
    assert "configuration file" in service.registry.deployments.get(made).reason
    await service.close()


async def test_file_whose_deployment_was_deactivated_or_deleted_is_served_when_asked_for_again(
    place: Place,
) -> None:
    service = await place.start(place.config("a"))
    id = service.active.deployment_id
    await service.deployments.deactivate(id)
    await service.close()
    service = await place.start(place.config("a"))
    assert (service.active.deployment_id, state(service, id)) == (id, "ACTIVE")
    await service.deployments.delete(id)
    await service.deployments.wait()
    await service.close()
    service = await place.start(place.config("a"))
    assert state(service, id) == "DELETED"
    assert service.active.deployment_id != id
    await service.close()


async def test_engine_that_does_not_come_again_leaves_the_control_plane(
    place: Place, engines: Engines
) -> None:
    first = await place.start(place.config("a"))
    id = first.active.deployment_id
    await first.close()
    engines.fails = EngineStartFailed("no memory")
    service = await place.start(ControlConfig())
    try:
        assert state(service, id) == "FAILED"
        with pytest.raises(NotReady, match="no memory"):
            _ = service.active
    finally:
        await service.close()
    engines.fails = None
    service = await place.start(ControlConfig())
    assert state(service, id) == "ACTIVE"
    await service.close()


async def test_file_that_cannot_be_served_ends_the_start(place: Place, engines: Engines) -> None:
    engines.fails = EngineStartFailed("no memory")
    service = Service(place.config("a"), place.data, durable=True)
    with pytest.raises(EngineStartFailed):
        await service.start()
    assert service.state is State.FAILED
    engines.fails = None
    config = place.config("a")
    gone = replace_source(config, str(place.directory / "gone"))
    with pytest.raises(SourceNotFound, match=r"group.members\[0\] \(a\)"):
        await Service(gone, place.data, durable=True).start()


def replace_source(config: Config, source: str) -> Config:
    member = config.group.members[0].model_copy(update={"source": source})
    return config.model_copy(
        update={"group": config.group.model_copy(update={"members": (member,)})}
    )


async def test_committed_group_is_served_when_the_files_adapters_are_gone(place: Place) -> None:
    service = await place.start(place.config("a"))
    await service.close()
    (place.directory / "a" / "adapter_model.safetensors").unlink()
    service = await place.start(place.config("a"))
    assert keys(service) == ["base", "a"]
    await service.close()


async def test_dead_engine_comes_back_whoever_made_its_deployment(
    place: Place, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "TICK_SECONDS", 0.01)
    service = await place.start(place.config("a"))
    id = service.active.deployment_id
    group = service.registry.deployments.get(id).group_id
    await service.deployments.delete(id)
    await service.deployments.wait()
    id = await create(service, group)
    dead = engine_of(service.active.serving)
    dead.dead = True
    with pytest.raises(EngineDead):
        _ = service.active
    await until_async(lambda: answers(service))
    assert (service.active.deployment_id, keys(service), dead.closed) == (id, ["base", "a"], True)
    await service.close()


def answers(service: Service) -> bool:
    with contextlib.suppress(EngineError):
        return service.active is not None
    return False


async def test_engine_that_does_not_come_back_ends_the_service(
    place: Place, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "TICK_SECONDS", 0.01)
    rules = SupervisionConfig(backoff=timedelta(0), deaths=2)
    service = await place.start(place.config("a").model_copy(update={"supervision": rules}))
    engines.fails = EngineStartFailed("no memory")
    engine_of(service.active.serving).dead = True
    await asyncio.wait_for(service.given_up.wait(), 60)
    assert service.state is State.FAILED
    with pytest.raises(EngineDead, match=r"2 times in a row.*no memory"):
        service.check_live()
    await service.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty, and was not"), (b"a diary " * 999, "not a database"), (None, "malformed")],
)
async def test_damaged_registry_is_refused_and_left_as_it_is(
    place: Place, content: bytes | None, said: str
) -> None:
    service = await place.start(place.config("a", "b", "c"))
    path = service.ledger.path
    await service.close()
    if content is None:
        whole = bytearray(path.read_bytes())
        for at in range(2 * 4096, len(whole), 4096):
            whole[at : at + 64] = b"\xff" * 64
        content = bytes(whole)
    path.write_bytes(content)
    with pytest.raises(RegistryUnusable, match=said) as refused:
        await Service(ControlConfig(), place.data, durable=True).start()
    assert str(path) in str(refused.value)
    assert path.read_bytes() == content
    path.unlink()  # as it says
    service = await place.start(place.config("a"))
    assert keys(service) == ["base", "a"]
    await service.close()


async def test_damaged_registry_is_no_concern_of_requests(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "TICK_SECONDS", 0.01)
    service = await place.start(place.config("a"))

    @event.listens_for(service.registry._database._store._engine, "begin")
    def begin(connection: Connection) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    service.vllm.live.admit({"key": "a"}).lease.release()
    with pytest.raises(RegistryUnusable, match="malformed"):
        service.registry.deployments.list()
    engine_of(service.active.serving).dead = True
    await until_async(lambda: answers(service))
    service.vllm.live.admit({"key": "a"}).lease.release()
    await service.close()


async def test_loading_alone_can_be_off_in_a_deployment(place: Place) -> None:
    service = await place.start(place.config("a"))
    serving = service.vllm
    serving.settings = replace(serving.settings, runtime_updates=False)
    with pytest.raises(Exception, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        await service.runtime.load(str(place.directory / "b"), key="b", model_id=None)
    await service.close()


def told(service: Service) -> dict[str | None, tuple[str, str]]:
    """The states of the deployment's members by key, with their reasons."""
    rows = service.member_states(service.active.deployment_id, Query()).items
    return {row.key: (row.state.value, row.reason) for row in rows}


async def test_member_that_was_removed_by_itself_is_told_and_comes_back_by_its_id(
    place: Place,
) -> None:
    service = await place.start(place.config("a", "b"))
    id = service.routing.resolve("b").model_id
    await service.runtime.unload("b")
    state, reason = told(service)["b"]
    assert (state, f"POST /models/{id}" in reason) == ("FAILED", True)
    assert {key: one for key, (one, _) in told(service).items() if key != "b"} == {
        "base": "SUCCESS",
        "a": "SUCCESS",
    }
    for name in (id, "b"):
        route = await service.runtime.load_known(name, None)
        assert route is not None
        assert (route.key, route.model_id) == ("b", id)
        assert told(service)["b"] == ("SUCCESS", "")
        await service.runtime.unload(name)
    await service.close()
    again = await place.start(place.config("a", "b"))
    assert (keys(again), told(again)["b"][0]) == (["base", "a", "b"], "SUCCESS")
    await again.close()


async def test_model_of_the_catalogue_is_loaded_by_its_id(place: Place) -> None:
    roots = ServerConfig(adapter_roots=(str(place.directory),))
    service = await place.start(place.config("a").model_copy(update={"server": roots}))
    new = Model(id="", display_name="b")
    other = service.catalogue.register(new, str(place.directory / "b"))
    for key in (None, "second"):
        route = await service.runtime.load_known(other.id, key)
        assert route is not None
        assert (route.key, route.digest) == (key, other.digest)
    assert keys(service) == ["base", "a", other.id, "second"]
    assert await service.runtime.load_known("ocid1.datasciencemodel.oc1..none", None) is None
    base = service.routing.base.model_id
    with pytest.raises(ParameterInvalid, match="base"):
        await service.runtime.load_known(base, None)
    service.registry.models.set_state(other.id, ModelState.INACTIVE)
    await service.runtime.unload(other.id)
    with pytest.raises(RecordConflict, match="INACTIVE"):
        await service.runtime.load_known(other.id, None)
    empty = service.registry.models.put(Model(id=new_id(MODEL), display_name="empty"))
    with pytest.raises(RecordConflict, match="no artifact"):
        await service.runtime.load_known(empty.id, None)
    service.vllm.plan = replace(service.vllm.plan, max_rank=1)
    service.registry.models.set_state(other.id, ModelState.ACTIVE)
    with pytest.raises(RankRefused):
        await service.runtime.load_known(other.id, None)
    await service.close()


async def test_group_without_records_is_served_and_cannot_be_deployed_over(place: Place) -> None:
    service = Service(place.config("a", "b"), place.data)
    await service.start()
    assert keys(service) == ["base", "a", "b"]
    assert service.active.name == "default"
    with pytest.raises(NotReady):
        _ = service.deployments
    assert not (place.data / "deployments").exists()
    await service.close()
    assert service.state is State.STOPPING
