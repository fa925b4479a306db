"""Calls to several engines behind one client: what all of them answer, and what one refuses.

The client is a double of vLLM's for data parallelism, whose own calls return the first answer.
"""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from stacked.engine import calls
from stacked.engine.calls import PART_SECONDS, Calls
from stacked.engine.engine import Engine
from stacked.errors import EngineDead, EngineError, EngineLoadFailed, EngineSilent
from tests.engine.test_engine import ADAPTER, Worker
from tests.waiting import until_async


class Cores:
    """`DPLBAsyncMPClient`: each engine has two workers, and takes `seconds` of it for a call."""

    def __init__(self, engines: int) -> None:
        self.core_engines = [rank.to_bytes(2, "little") for rank in range(engines)]
        self.workers = [[Worker({}), Worker({})] for _ in range(engines)]
        self.seconds = [0.0] * engines
        self.fails: dict[int, BaseException] = {}
        self.reqs_in_flight: dict[str, bytes] = {}
        self.parts: list[tuple[int, float]] = []
        """The engine and the seconds of each call that was for a part."""

    async def _call_utility_async(self, method: str, *args: Any, engine: bytes) -> Any:
        rank = self.core_engines.index(engine)
        await asyncio.sleep(self.seconds[rank])
        if rank in self.fails:
            raise self.fails[rank]
        if method == "list_loras":
            return [*self.workers[rank][0].held]
        _, timeout, (command, *given) = args
        assert (method, args[0], timeout) == ("collective_rpc", "stacked_call", None)
        return [getattr(worker, command)(*given) for worker in self.workers[rank]]


class Client:
    errored = False
    output_processor: Any

    def __init__(self, engines: int = 3, world_size: int = 1) -> None:
        parallel = SimpleNamespace(data_parallel_size=engines, world_size=world_size)
        self.vllm_config = SimpleNamespace(parallel_config=parallel)
        self.engine_core = Cores(engines)


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def cores(client: Client) -> Cores:
    return client.engine_core


@pytest.fixture
def engine(client: Client) -> Engine:
    return Engine(plan=None, args=None, client=client)  # type: ignore[arg-type]


def held(cores: Cores) -> list[int]:
    """How many adapters each worker has, staged ones included."""
    return [len(worker.held) + len(worker.staged) for each in cores.workers for worker in each]


async def test_an_adapter_is_loaded_when_every_engine_has_it(engine: Engine, cores: Cores) -> None:
    loaded = await engine.load(ADAPTER)
    assert held(cores) == [1] * 6
    assert await engine.calls.lists() == [{loaded.number}] * 3
    resident = await engine.resident()
    assert (resident.host, resident.slots) == ({loaded.number}, (None, loaded.number))
    await engine.remove(loaded)
    assert held(cores) == [0] * 6


@pytest.mark.parametrize("rank", [0, 1, 2])
async def test_what_one_engine_cannot_read_is_in_none(
    engine: Engine, cores: Cores, rank: int
) -> None:
    cores.workers[rank][1].outcome = ["failed", "rank 512 is too large"]
    with pytest.raises(EngineLoadFailed, match=rf"rank 512 is too large on engine {rank}$"):
        await engine.load(ADAPTER)
    assert held(cores) == [0] * 6


@pytest.mark.parametrize("rank", [0, 1, 2])
async def test_what_one_engine_cannot_hold_is_in_none(
    engine: Engine, cores: Cores, rank: int
) -> None:
    for worker in cores.workers[rank]:
        worker.outcome = ["no room", ""]
    loaded = await engine._handle(ADAPTER)
    for each in cores.workers:
        for worker in each:
            worker.stage(loaded.number, loaded.name, "")
    with pytest.raises(EngineLoadFailed, match=rf"on engine {rank}: host memory is full$"):
        await engine.adopt(loaded)
    await engine.discard(loaded)
    assert held(cores) == [0] * 6


async def test_a_start_says_which_adapter_one_engine_lacks(engine: Engine, cores: Cores) -> None:
    def load(wanted: list[tuple[int, str, str]]) -> None:
        raise RuntimeError("no such tensor")

    cores.workers[2][0].load = load  # type: ignore[method-assign]
    with pytest.raises(EngineLoadFailed, match="engine 2: no such tensor") as caught:
        await engine.load_all([ADAPTER], lambda count: None)
    assert caught.value.digest == ADAPTER.digest


async def test_adapter_that_stays_in_one_engine_is_an_error(engine: Engine, cores: Cores) -> None:
    loaded = await engine.load(ADAPTER)
    for worker in cores.workers[1]:
        worker.forgets = False
    with pytest.raises(EngineError, match=r"still lists .* on engine 1"):
        await engine.remove(loaded)
    assert await engine.list() == {loaded.number}
    assert (await engine.resident()).host == set()  # not all have it


async def test_an_adapter_is_in_a_slot_if_all_engines_have_it_there(
    engine: Engine, cores: Cores
) -> None:
    loaded = await engine.load(ADAPTER)
    cores.workers[1][0].resident = lambda: [[], [loaded.number], [9, 0]]  # type: ignore[method-assign]
    resident = await engine.resident()
    assert (resident.host, resident.slots) == ({loaded.number}, (None, None))


async def test_the_engines_do_not_wait_for_one_another(engine: Engine, cores: Cores) -> None:
    others = asyncio.Event()
    ended: list[int] = []

    async def call(rank: int) -> int:
        if rank == 0:
            await others.wait()  # never, if the others came after it
        ended.append(rank)
        if len(ended) == 2:
            others.set()
        return rank

    assert await engine.calls.each(call, "calling") == [0, 1, 2]
    assert ended[-1] == 0


async def test_each_engine_gets_a_part_by_its_own_steps(
    engine: Engine, cores: Cores, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    async def answer(self: Cores, method: str, *args: Any, engine: bytes) -> Any:
        nonlocal now
        now += {0: 0.0, 1: 0.2, 2: 0.05}[self.core_engines.index(engine)]
        self.parts.append((self.core_engines.index(engine), args[-1][-1]))
        return ["more"]

    clock = SimpleNamespace(perf_counter=lambda: now, monotonic=time.monotonic)
    monkeypatch.setattr(calls, "time", clock)
    monkeypatch.setattr(Cores, "_call_utility_async", answer)
    for _ in range(2):
        await engine.calls.part("activate", 1, doing="activating")
    least, most = PART_SECONDS
    sizes = dict(cores.parts)
    assert (sizes[0], sizes[1]) == (least, most)
    assert least < sizes[2] < most


async def test_the_worst_failure_is_raised_when_all_have_ended(
    engine: Engine, cores: Cores
) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    cores.fails = {0: RuntimeError("refused"), 2: EngineDeadError()}
    with pytest.raises(EngineDead):
        await engine.calls.workers("settle", doing="settling")
    assert cores.workers[1][0].settled == 0  # it was asked too


async def test_what_an_engine_refuses_as_another_has_died_is_the_death(
    client: Client, cores: Cores
) -> None:
    cores.fails = {0: RuntimeError("Server shutting down")}
    calls = Calls(client, ending=lambda: True)
    with pytest.raises(EngineDead):
        await calls.lists()
    with pytest.raises(EngineLoadFailed, match=r"on engine 0: .*shutting down"):
        await Calls(client).lists()


async def test_an_engine_that_is_silent_is_named(
    engine: Engine, cores: Cores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 0.05)
    cores.seconds[1] = 5.0
    with pytest.raises(EngineSilent, match="on engine 1: no answer"):
        await engine.list()


def test_a_pinned_request_goes_to_an_engine_with_the_cards() -> None:
    client = Client(engines=3, world_size=2)  # cards 0 and 1, 2 and 3, 4 and 5
    ours, cores = Calls(client), client.engine_core
    assert ours.rank_for(()) is None
    assert [ours.rank_for([card]) for card in range(6)] == [0, 0, 1, 1, 2, 2]
    cores.reqs_in_flight = {"a": cores.core_engines[0], "b": cores.core_engines[0]}
    cores.reqs_in_flight["c"] = cores.core_engines[1]
    assert ours.rank_for([0, 2]) == 1
    assert ours.rank_for([0, 1, 5]) == 2
    assert Calls(Client(engines=1)).rank_for([0]) is None


async def test_an_engine_that_comes_to_no_step_is_known(client: Client, cores: Cores) -> None:
    calls = Calls(client)
    await calls.step()
    assert calls.silent == set()
    cores.fails = {0: RuntimeError("refused")}  # which is an answer
    cores.seconds = [0.0, 3600.0, 0.0]
    step = asyncio.create_task(calls.step())
    await until_async(lambda: calls.silent == {1})
    assert not step.done()
    step.cancel()
    cores.fails = {0: EngineDeadError()}
    with pytest.raises(EngineDead):
        await calls.step()


def test_requests_on_one_engine_are_of_its_adapters_alone(client: Client, cores: Cores) -> None:
    a, b, c = (SimpleNamespace(name=f"{each}.1") for each in "abc")
    on = {"1": (0, a), "2": (1, b), "3": (1, None), "4": (0, b), "read": (1, c)}
    cores.reqs_in_flight = {id: cores.core_engines[rank] for id, (rank, _) in on.items()}
    states = {
        id: SimpleNamespace(lora_name=each.name if each else None)
        for id, (_, each) in on.items()
        if id != "read"  # whose last output is on its way
    }
    client.output_processor = SimpleNamespace(request_states=states)
    calls, held = Calls(client), [a, b, c, None]
    found = [calls.with_requests(rank, held) for rank in range(3)]  # type: ignore[arg-type]
    assert found == [[a, b], [b, None], []]
