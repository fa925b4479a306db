"""What is given up while vLLM starts is ended, and which lines of its log are steps."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from argparse import Namespace
from typing import Any

import pytest

from stacked.engine import creating
from stacked.engine.causes import Causes
from stacked.errors import EngineStartFailed
from stacked.steps import Start


async def given_up(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    """Cancel a start as soon as it is in the middle of `make`."""
    begun = threading.Event()

    def create(args: Namespace) -> Any:
        begun.set()
        return make()

    monkeypatch.setattr(creating, "_create", create)
    task = asyncio.ensure_future(creating.create(Namespace()))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)


async def test_processes_of_a_start_that_is_given_up_are_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spawn = multiprocessing.get_context("spawn")
    child = spawn.Process(target=time.sleep, args=(60,))

    def make() -> None:
        child.start()
        child.join()
        raise EngineStartFailed("its process ended")

    await given_up(monkeypatch, make)
    assert child.exitcode is not None
    assert child.exitcode < 0


async def test_an_engine_that_came_up_when_it_was_given_up_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[str] = []
    leave = threading.Event()

    class Client:
        def shutdown(self) -> None:
            ended.append("shut down")

    def make() -> tuple[Client, Causes]:
        leave.wait(0.3)
        return Client(), Causes()

    await given_up(monkeypatch, make)
    assert ended == ["shut down"]


def test_steps_are_found_in_a_log_in_their_order() -> None:
    lines = [
        "INFO KV cache size is set",  # before its time
        "INFO Initializing a V1 LLM engine (v0.32.0) with config",
        "INFO Starting to load model /base",
        "INFO Starting to load model /base again",
        "INFO GPU KV cache size: 1,024 tokens",
        "INFO KV cache size once more",
    ]
    steps = creating.LogSteps()
    assert [step for line in lines if (step := steps.begun(line))] == [
        Start.WORKER,
        Start.WEIGHTS,
        Start.PROFILE,
    ]
    assert not steps
