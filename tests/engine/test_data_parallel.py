"""Two of vLLM's engines behind one client, on a CPU: one start, in this process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import stacked
from stacked import config
from stacked.core import Adapter, Member, ModelId, model_id_of
from stacked.engine.engine import Engine
from stacked.errors import CanaryFailed, EngineDead, EngineLoadFailed, GroupInvalid
from stacked.serving.vllm import VllmServing
from stacked.stack import SyncStack
from tests.conftest import PROMPT, TinyModels
from tests.live.faults import copied, no_op
from tests.waiting import until

# Two engines start in 31 to 54 s on two cores.
pytestmark = [pytest.mark.engine, pytest.mark.long]

SAMPLING = {"max_tokens": 12, "temperature": 0}

T = TypeVar("T")


class Pair:
    """A stack of two engines; `a` is pinned to the first and `b` to the second."""

    def __init__(self, stack: SyncStack) -> None:
        self.stack = stack
        self.serving: VllmServing = stack._stack.service.vllm
        self.engine: Engine = self.serving.engine
        self.cores = self.engine.client.engine_core
        self.chosen: list[int] = []
        """The rank of the engine that each request went to."""
        choose = self.cores.get_core_engine_for_request

        def chosen(request: Any) -> Any:
            engine = choose(request)
            self.chosen.append(self.cores.core_engines.index(engine))
            return engine

        self.cores.get_core_engine_for_request = chosen

    def run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return self.stack._portal.call(call)

    def told(self, rank: int, command: str, *args: Any) -> Any:
        """Have the workers of one engine alone do something."""
        return self.run(lambda: self.engine.calls._rpc(rank, command, *args))

    def adapter(self, path: Path) -> Adapter:
        modules = self.serving.modules
        return Adapter.of(self.stack._stack.service._store.add(str(path), base=modules))

    def lists(self) -> list[set[int]]:
        return list(self.run(self.engine.calls.lists))

    def texts(self, key: str, rank: int) -> str:
        """The greedy answer of a key on one of the engines."""
        handle = self.serving.live.routing.resolve(key).handle

        async def ask() -> Any:
            return await self.engine.generate(
                [PROMPT], handle, request_id=f"{key}-{rank}", sampling=SAMPLING, cards=[rank]
            )

        (output,) = self.run(ask)
        return str(output.outputs[0].text)


def tree(tiny_models: TinyModels, gpus: dict[str, tuple[int, ...]]) -> config.Config:
    members = [
        config.MemberConfig(source=str(tiny_models.adapters[key]), key=key) for key in ("a", "b")
    ]
    return config.Config(
        base=config.BaseConfig(model=str(tiny_models.base), key="base"),
        group=config.GroupConfig(members=tuple(members), gpus=gpus),
        engine={
            "data_parallel_size": 2,
            "kv_cache_memory_bytes": 2**28,
            "max_cpu_loras": 4,
            "max_model_len": 256,
        },
    )


@pytest.fixture(scope="module")
def pair(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    gpus = {"a": (0,), "b": (1,)}
    directory = tmp_path_factory.mktemp("pair")
    with stacked.open_sync(tree(tiny_models, gpus), data_dir=directory) as opened:
        yield Pair(opened)


def test_both_engines_have_all_adapters_and_answer_alike(pair: Pair) -> None:
    handles = pair.serving.live.routing.handles.values()
    assert pair.lists() == [{each.number for each in handles}] * 2
    texts = {key: [pair.texts(key, rank) for rank in range(2)] for key in ("base", "a", "b")}
    assert pair.chosen[-6:] == [0, 1] * 3
    assert all(one == other for one, other in texts.values())
    assert len({one for one, _ in texts.values()}) == 3


def test_requests_of_a_pinned_key_go_where_it_is_pinned(pair: Pair) -> None:
    for key, wanted in (("a", {0}), ("b", {1}), ("base", {0, 1})):
        pair.chosen.clear()
        # More than vLLM's counts, which are of a moment before, can say that an engine is ahead.
        answers = pair.stack.generate(key, [PROMPT] * 16, **SAMPLING)
        assert {*pair.chosen} == wanted
        assert {answer.text for answer in answers} == {pair.texts(key, 0)}


def test_an_unknown_card_is_refused_before_the_engine_starts(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    refused = stacked.open_sync(tree(tiny_models, {"a": (2,)}), data_dir=tmp_path)
    with pytest.raises(GroupInvalid, match="'a' is pinned to card 2, and this server has 2"):
        refused.__enter__()


def test_what_one_engine_refuses_is_in_neither(pair: Pair, tiny_models: TinyModels) -> None:
    before, adapter = pair.lists(), pair.adapter(tiny_models.adapters["c"])
    number = next(pair.engine._numbers) + 1  # which the next adapter gets
    pair.told(1, "stage", number, "another", "/nowhere")
    with pytest.raises(EngineLoadFailed, match="on engine 1"):
        pair.run(lambda: pair.engine.load(adapter))
    assert pair.lists() == before
    assert pair.run(pair.engine.resident).staged == set()


def test_models_come_and_go_on_both_under_requests(pair: Pair, tiny_models: TinyModels) -> None:
    before, adapter = pair.lists(), pair.adapter(tiny_models.adapters["c"])
    live, expected = pair.serving.live, {key: pair.texts(key, 0) for key in ("a", "b", "base")}
    member = Member(model_id_of(adapter.digest), adapter, "c")

    async def change() -> dict[str, set[str]]:
        stack = pair.stack._stack
        keys = ("a", "b", "base") * 8
        asking = [asyncio.create_task(stack.generate(key, PROMPT, **SAMPLING)) for key in keys]
        await live.add(member)
        answers = await asyncio.gather(*asking)
        found: dict[str, set[str]] = {key: set() for key in keys}
        for key, (answer,) in zip(keys, answers, strict=True):
            found[key].add(answer.text)
        return found

    assert pair.run(change) == {key: {text} for key, text in expected.items()}
    added = live.routing.handles[adapter.digest].number
    assert pair.lists() == [numbers | {added} for numbers in before]
    assert pair.texts("c", 0) == pair.texts("c", 1)
    pair.run(lambda: live.remove("c"))
    assert pair.lists() == before


def test_an_adapter_that_is_broken_in_one_engine_fails_its_canary(
    pair: Pair, tiny_models: TinyModels, tmp_path: Path
) -> None:
    """Of the same number, the second engine has an adapter that changes nothing."""
    before = pair.lists()
    adapter = pair.adapter(tiny_models.adapters["c"])
    path = copied(adapter.path, tmp_path / "weak", no_op)
    number = next(pair.engine._numbers) + 1
    pair.told(1, "stage", number, f"{adapter.digest}.{number}", str(path))
    member = Member(ModelId("ocid1.datasciencemodel.oc1..c"), adapter, "c")
    with pytest.raises(CanaryFailed, match="on engine 1 changes nothing"):
        pair.run(lambda: pair.serving.live.add(member))
    assert pair.lists() == before


@pytest.mark.last
def test_the_death_of_one_engine_is_the_death_of_all(pair: Pair) -> None:
    processes = {each.name: each.pid for each in pair.engine._processes._started}
    os.kill(processes["EngineCore_DP1"] or 0, signal.SIGKILL)
    until(lambda: pair.engine.dead)
    assert "EngineCore_DP1 was killed by signal 9" in str(pair.run(pair.engine.ended))
    with pytest.raises(EngineDead):
        pair.stack.generate("a", PROMPT, **SAMPLING)
