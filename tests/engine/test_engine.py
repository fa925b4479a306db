"""The engine's handles: names that carry the digest, ids used once, failures told as ours."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from stacked.core import Adapter, Digest
from stacked.engine import engine as engine_module
from stacked.engine.engine import Engine
from stacked.errors import EngineDead, EngineError, EngineLoadFailed

ADAPTER = Adapter(Digest(f"sha256:{7:064x}"), Path("/store/seven"), 8, ("q_proj",), 1000)


class Client:
    """AsyncLLM's side of loading, held in a set; `fails` is raised by the next call."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.fails: BaseException | None = None
        self.forgets = True
        self.errored = False

    async def add_lora(self, request: Any) -> bool:
        if self.fails:
            raise self.fails
        self.held[request.lora_int_id] = request
        return True

    async def remove_lora(self, number: int) -> bool:
        return self.held.pop(number, None) is not None if self.forgets else True

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
    request = client.held[second.number]
    assert (request.lora_path, request.load_inplace) == ("/store/seven", False)


async def test_removed_adapter_is_gone_from_the_engines_own_list(engine: Engine) -> None:
    loaded = await engine.load(ADAPTER)
    assert await engine.list() == {loaded.number}
    await engine.remove(loaded)
    await engine.remove(loaded)
    assert await engine.list() == set()


async def test_adapter_that_stays_after_its_removal_is_an_error(
    engine: Engine, client: Client
) -> None:
    loaded = await engine.load(ADAPTER)
    client.forgets = False
    with pytest.raises(EngineError, match="still lists"):
        await engine.remove(loaded)


async def test_what_the_worker_raises_is_a_failed_load_with_its_cause(
    engine: Engine, client: Client
) -> None:
    client.fails = RuntimeError("no such tensor\nTraceback …")
    with pytest.raises(EngineLoadFailed, match=r"no such tensor$") as caught:
        await engine.load(ADAPTER)
    assert caught.value.__cause__ is client.fails


async def test_dead_engine_and_lost_calls_have_errors_of_their_own(
    engine: Engine, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    client.fails = EngineDeadError()
    with pytest.raises(EngineDead):
        await engine.load(ADAPTER)
    monkeypatch.setattr(engine_module, "CALL_SECONDS", 0.01)
    client.list_loras = lambda: asyncio.sleep(5)  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(EngineError, match="no answer"):
        await engine.list()


async def test_closing_twice_is_closing_once(engine: Engine) -> None:
    await engine.close()
    await engine.close()
