"""The engine's handles: names that carry the digest, ids used once, failures told as ours."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stacked.core import Adapter, Digest
from stacked.engine import calls
from stacked.engine.engine import Engine
from stacked.errors import EngineDead, EngineError, EngineLoadFailed, EngineSilent
from tests.waiting import until_async

ADAPTER = Adapter(Digest(f"sha256:{7:064x}"), Path("/store/seven"), 1000, 8, ("q_proj",))


class Worker:
    """What `collective_rpc` may call. An adapter is in one place; activation has two parts."""

    def __init__(self, held: dict[int, Any]) -> None:
        self.held = held
        self.staged: dict[int, list[str]] = {}
        self.outcome = ["ready", ""]
        self.parts = 2
        self.forgets = True
        self.settled: int | None = None

    def stage(self, number: int, name: str, path: str) -> None:
        self.staged[number] = [name, path]

    def advance(self, numbers: list[int], seconds: float) -> list[list[str]]:
        return [self.outcome if number in self.staged else ["absent", ""] for number in numbers]

    def adopt(self, number: int) -> None:
        if self.outcome[0] == "no room":
            raise RuntimeError("host memory is full")
        if number in self.staged:
            self.held[number] = self.staged.pop(number)

    def activate(self, number: int, seconds: float) -> str:
        self.parts -= 1
        return "more" if self.parts > 0 else "active" if self.parts == 0 else "full"

    def discard(self, *numbers: int) -> None:
        for number in numbers:
            self.staged.pop(number, None)

    def load(self, wanted: list[tuple[int, str, str]]) -> None:
        self.held |= {number: [name, path] for number, name, path in wanted}

    def settle(self) -> None:
        self.settled = len(self.held)

    def remove(self, *numbers: int) -> None:
        for number in numbers if self.forgets else ():
            self.held.pop(number, None)

    def resident(self) -> list[list[int]]:
        return [sorted(self.staged), sorted(self.held), [0, *self.held]]


class Client:
    """AsyncLLM's side of adapters, by one worker or more; `fails` is raised by the next call."""

    vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=1))

    def __init__(self, workers: int = 1) -> None:
        self.workers = [Worker({}) for _ in range(workers)]
        self.held = self.workers[0].held
        self.fails: BaseException | None = None
        self.errored = False

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        if self.fails:
            raise self.fails
        assert method == "stacked_call"
        return [getattr(worker, args[0])(*args[1:]) for worker in self.workers]

    async def list_loras(self) -> set[int]:
        return set(self.held)

    def shutdown(self) -> None: ...


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def engine(client: Client) -> Engine:
    return Engine(plan=None, args=None, client=client)  # type: ignore[arg-type]


async def test_name_carries_the_digest_and_no_id_is_used_twice(
    engine: Engine, client: Client
) -> None:
    first = await engine.load(ADAPTER)
    await engine.remove(first)
    second = await engine.load(ADAPTER)
    assert ADAPTER.digest in first.name
    assert first.name != second.name
    assert first.number != second.number
    assert client.held[second.number] == [second.name, "/store/seven"]
    request = second.request
    assert (request.lora_path, request.load_inplace) == ("/store/seven", False)


async def test_removed_adapter_is_gone_from_the_engines_own_list(engine: Engine) -> None:
    loaded = await engine.load(ADAPTER)
    assert await engine.list() == {loaded.number}
    await engine.remove(loaded)
    await engine.remove(loaded)
    assert await engine.list() == set()


async def test_many_are_removed_at_once_and_others_stay(engine: Engine) -> None:
    adapters = [replace(ADAPTER, digest=Digest(f"sha256:{n:064x}")) for n in range(40)]
    counted: list[int] = []
    loaded = list((await engine.load_all(adapters, counted.append)).values())
    assert counted == [16, 32, 40]
    await engine.remove(*loaded[:37], loaded[0])
    assert await engine.list() == {each.number for each in loaded[37:]}


@pytest.mark.parametrize(("size", "calls"), [(0, 1), (1 << 28, 2), (1 << 31, 6)])
async def test_a_call_loads_few_adapters_where_they_are_large(
    engine: Engine, size: int, calls: int
) -> None:
    adapters = [replace(ADAPTER, digest=Digest(f"sha256:{n:064x}"), bytes=size) for n in range(6)]
    counted: list[int] = []
    assert len(await engine.load_all(adapters, counted.append)) == 6
    assert len(counted) == calls


async def test_what_a_start_has_loaded_is_settled(engine: Engine, client: Client) -> None:
    await engine.load_all([ADAPTER], lambda count: None)
    assert client.workers[0].settled == 1


async def test_adapter_that_stays_after_its_removal_is_an_error(
    engine: Engine, client: Client
) -> None:
    loaded = await engine.load(ADAPTER)
    client.workers[0].forgets = False
    with pytest.raises(EngineError, match="still lists"):
        await engine.remove(loaded)


async def test_what_the_worker_raises_is_a_failed_load_with_its_cause(
    engine: Engine, client: Client
) -> None:
    client.fails = RuntimeError("no such tensor\nTraceback …")
    with pytest.raises(EngineLoadFailed, match=r"no such tensor$") as caught:
        await engine.load(ADAPTER)
    assert caught.value.__cause__ is client.fails


async def test_staged_adapter_is_the_engines_when_it_is_adopted(
    engine: Engine, client: Client
) -> None:
    loaded = await engine.stage(ADAPTER)
    assert await engine.list() == set()
    assert (await engine.resident()).staged == {loaded.number}
    await engine.adopt(loaded)
    await engine.adopt(loaded)
    resident = await engine.resident()
    assert (resident.staged, resident.host) == (set(), {loaded.number})
    assert resident.slots == (None, loaded.number)
    assert await engine.activate(loaded)
    assert not await engine.activate(loaded)  # no slot is free any more
    discarded = await engine.stage(ADAPTER)
    await engine.discard(discarded)
    await engine.discard(discarded)
    assert (await engine.resident()).staged == set()


async def test_adapter_that_one_of_several_workers_cannot_read_is_in_none() -> None:
    client = Client(workers=3)
    engine = Engine(plan=None, args=None, client=client)  # type: ignore[arg-type]
    client.workers[1].outcome = ["failed", "rank 512 is too large"]
    with pytest.raises(EngineLoadFailed, match=r"rank 512 is too large$"):
        await engine.load(ADAPTER)
    assert [(worker.staged, worker.held) for worker in client.workers] == [({}, {})] * 3


async def test_adapter_that_one_of_several_workers_cannot_hold_is_in_none() -> None:
    client = Client(workers=2)
    engine = Engine(plan=None, args=None, client=client)  # type: ignore[arg-type]
    loaded = await engine.stage(ADAPTER)
    client.workers[1].outcome = ["no room", ""]
    with pytest.raises(EngineLoadFailed, match="host memory is full"):
        await engine.adopt(loaded)
    await engine.discard(loaded)
    assert [(worker.staged, worker.held) for worker in client.workers] == [({}, {})] * 2


async def test_reading_that_never_ends_is_given_up(
    engine: Engine, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.workers[0].outcome = ["reading", ""]
    monkeypatch.setattr(calls, "CALL_SECONDS", 0.1)
    with pytest.raises(EngineLoadFailed, match="not read in"):
        await engine.stage(ADAPTER)
    assert client.workers[0].staged == {}
    client.workers[0].outcome = ["ready", ""]
    monkeypatch.setattr(calls, "CALL_SECONDS", 120.0)
    assert (await engine.load(ADAPTER)).number in await engine.list()


async def test_load_that_is_cancelled_leaves_nothing(engine: Engine, client: Client) -> None:
    client.workers[0].outcome = ["reading", ""]
    loading = asyncio.create_task(engine.load(ADAPTER))
    await until_async(lambda: client.workers[0].staged)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert (client.workers[0].staged, client.held) == ({}, {})


async def test_dead_engine_and_lost_calls_have_errors_of_their_own(
    engine: Engine, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    client.fails = EngineDeadError()
    with pytest.raises(EngineDead):
        await engine.load(ADAPTER)
    monkeypatch.setattr(calls, "CALL_SECONDS", 0.01)
    client.list_loras = lambda: asyncio.sleep(5)  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(EngineSilent, match="no answer"):
        await engine.list()


async def test_closing_twice_is_closing_once(engine: Engine) -> None:
    await engine.close()
    await engine.close()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
async def test_a_core_that_a_cancelled_update_asked_for_is_shared_again(
    device: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = SimpleNamespace(device=device, options={"distributed_executor_backend": "uni"})
    engine = Engine(plan, args=None, client=client)  # type: ignore[arg-type]
    asked: list[str] = []
    inside = asyncio.Event()

    async def call(method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        asked.append(args[0])
        if args[0] == "take_core":
            inside.set()
            await asyncio.sleep(60)
        return [None]

    async def update() -> None:
        async with engine.undisturbed():
            inside.set()

    monkeypatch.setattr(client, "collective_rpc", call)
    task = asyncio.create_task(update())
    await inside.wait()
    task.cancel()
    await asyncio.wait({task})
    assert asked == (["take_core", "give_core"] if device == "cpu" else [])
