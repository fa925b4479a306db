"""Importing vLLM and creating its engine, which takes 20 to 60 s, with progress.

Relies on: the engine's processes are children of `multiprocessing`; what it logs while it starts,
see `LOG_LINES`. vLLM offers nothing else that shows progress.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
from argparse import Namespace
from importlib import import_module
from typing import Any

from stacked.engine import preload
from stacked.engine.causes import Causes, missing_package, sentence
from stacked.engine.hopper import needs_one_stage, use_one_stage
from stacked.engine.machine import look
from stacked.engine.plan import one_process
from stacked.engine.processes import Processes
from stacked.engine.support import find_build
from stacked.errors import EngineStartFailed, StackedError
from stacked.steps import Start

logger = logging.getLogger("stacked.engine.creating")

# Read by vLLM when it is imported, in this process and the ones it starts. A user's own win.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "TOKENIZERS_PARALLELISM": "false",
}
# Not the user's to turn on.
_SETTLED = {
    # Stacked answers for unknown models; vLLM must not look for adapters itself.
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
    # A background response would continue after its lease, when its adapter may be removed.
    "VLLM_ENABLE_RESPONSES_API_STORE": "0",
}

# In order. A line that a version of vLLM does not print is a step that is not reported.
LOG_LINES = (
    ("Initializing a V1 LLM engine", Start.WORKER),
    ("Starting to load model", Start.WEIGHTS),
    ("KV cache size", Start.PROFILE),
)


class LogSteps:
    """The steps of one start, in the order of its log."""

    def __init__(self) -> None:
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there are more."""
        return self._at < len(LOG_LINES)

    def begun(self, line: str) -> Start | None:
        """The step that begins with this line of the log, if one does."""
        for text, step in LOG_LINES[self._at : self._at + 1]:
            if text in line:
                self._at += 1
                return step
        return None


def prepare() -> None:
    """Begin what every start needs, whatever its plan. Returns at once; idempotent."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ |= _SETTLED
    machine, build = look(), find_build()
    if one_process(machine.cores):
        # The other core is for the process that serves HTTP; OpenMP's threads wait by spinning.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if build is not None and needs_one_stage(build, machine.gpus):
        use_one_stage(machine.gpus)
    preload.begin()


async def import_vllm() -> None:
    """Import in a thread, as it takes 13 s; when cancelled, the thread runs to its end."""
    await asyncio.to_thread(import_module, "vllm.v1.engine.async_llm")


async def create(args: Namespace) -> tuple[Any, Causes, Processes]:
    """vLLM's client of a started engine, the `Causes` that explain a later failure, and its
    processes.

    A cancellation ends the processes that were started for it. The call itself is not cancelled:
    its thread could not be, and the engine would be lost. Raises EngineStartFailed.
    """
    before = {child.pid for child in multiprocessing.active_children()}
    creating = asyncio.ensure_future(asyncio.to_thread(_create, args))
    try:
        client, causes = await asyncio.shield(creating)
    except asyncio.CancelledError:
        await _abandon(creating, before)
        raise
    started = [child for child in multiprocessing.active_children() if child.pid not in before]
    return client, causes, Processes(started)


async def _abandon(creating: asyncio.Future[tuple[Any, Causes]], before: set[int | None]) -> None:
    while not creating.done():
        for child in multiprocessing.active_children():
            if child.pid not in before:
                child.terminate()
        await asyncio.wait({creating}, timeout=0.2)
    try:
        client, causes = creating.result()
    except (StackedError, asyncio.CancelledError) as error:
        logger.info("a start was given up: %s", error)
    else:
        causes.close()
        await asyncio.to_thread(client.shutdown)


def _create(args: Namespace) -> tuple[Any, Causes]:
    causes = Causes()
    try:
        with causes:
            return _create_client(args), causes
    except Exception as error:  # vLLM raises anything here
        cause = missing_package(args.model) or causes.first() or sentence(error)
        causes.close()
        raise EngineStartFailed(f"vLLM did not start: {cause}") from error


def _create_client(args: Namespace) -> Any:
    from vllm import envs
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    envs.disable_envs_cache()  # of an engine before this one
    engine_args = AsyncEngineArgs.from_cli_args(args)
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    client = AsyncLLM.from_vllm_config(
        vllm_config=config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=args.enable_log_requests,
        disable_log_stats=args.disable_log_stats,
    )
    # As in its own processes: it looks variables up for each token.
    envs.enable_envs_cache()
    return client
