"""One vLLM engine: start, load, remove and list adapters, generate, and tell whether it lives.

Adapters are loaded under names that carry their content digest, with ids that are used once, so
that no cache of vLLM's can mix two contents. It must not know keys, groups or HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stacked.core import Adapter, Digest, Progress, Silent
from stacked.engine.options import parse_options
from stacked.engine.plan import EnginePlan
from stacked.engine.platform import base_is_protected, enabled
from stacked.errors import (
    EngineDead,
    EngineError,
    EngineLoadFailed,
    EngineStartFailed,
    ParameterInvalid,
    StackedError,
)

if TYPE_CHECKING:
    from argparse import Namespace

    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput

# An engine call that takes longer than this is taken for lost: a load reads one adapter from disk.
CALL_SECONDS = 120.0

# Read by vLLM when it is imported, in this process and the ones it starts. A user's own win.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # How an unknown model is answered is ours to say; vLLM must not go looking for adapters.
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """The engine's handle of one adapter: `name` carries the digest, `number` is used once."""

    digest: Digest
    name: str
    number: int
    request: LoRARequest


class Engine:
    """A running vLLM. Make one with `await Engine.start(plan)`; `await close()` ends it."""

    def __init__(self, plan: EnginePlan, args: Namespace, client: Any) -> None:
        self.plan = plan
        self.args = args
        self.client = client
        self._numbers = itertools.count(1)
        self._changing = asyncio.Lock()
        self._closed = False

    @classmethod
    async def start(cls, plan: EnginePlan, *, progress: Progress | None = None) -> Engine:
        """Start vLLM as planned; 20 to 60 s. Raises EngineStartFailed, EngineOptionInvalid.

        The slow work is done in a thread, so that this loop can answer "starting" meanwhile.
        """
        tell = progress or Silent()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # This one is not the user's to turn on: ours replaces it.
        os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "0"
        tell.step("Importing vLLM")
        await asyncio.to_thread(_import_vllm)
        options = {**plan.options, "model": plan.base, "served_model_name": [*plan.served_names]}
        args = await asyncio.to_thread(parse_options, options)
        tell.step("Starting the engine and loading the base")
        if enabled() and not base_is_protected():
            raise EngineStartFailed(
                "vLLM passed over Stacked's CPU platform, so base requests would get an adapter's "
                "weights; unset VLLM_PLUGINS and VLLM_TARGET_DEVICE, or set STACKED_CPU_LORA=0 to "
                "accept that"
            )
        try:
            client = await asyncio.to_thread(_create, args)
        except StackedError:
            raise
        except Exception as error:  # vLLM raises anything here; the sentence names its log
            raise EngineStartFailed(f"vLLM did not start: {_first_line(error)}") from error
        return cls(plan, args, client)

    async def load(self, adapter: Adapter) -> Loaded:
        """Load an adapter into the engine and activate it. Raises EngineLoadFailed, EngineDead.

        The same adapter loaded twice is two handles; callers keep one per digest.
        """
        from vllm.lora.request import LoRARequest  # vLLM is imported when an engine is

        number = next(self._numbers)
        name = f"{adapter.digest}.{number}"
        loaded = Loaded(
            digest=adapter.digest,
            name=name,
            number=number,
            request=LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(adapter.path)),
        )
        async with self._changing:
            added = await self._call(
                self.client.add_lora(loaded.request), f"loading adapter {adapter.digest}"
            )
            if not added:
                raise EngineLoadFailed(f"vLLM did not take adapter {adapter.digest}")
        return loaded

    async def remove(self, loaded: Loaded) -> None:
        """Remove an adapter and check by listing that it is gone. Removing twice is allowed.

        Only when no request uses it: vLLM would load it again from disk for a late one.
        """
        async with self._changing:
            if loaded.number in await self.list():
                await self._call(self.client.remove_lora(loaded.number), f"removing {loaded.name}")
            if loaded.number in await self.list():
                raise EngineError(f"vLLM still lists {loaded.name} after it was removed")

    async def list(self) -> set[int]:
        """The numbers of the adapters that the engine holds in host memory."""
        return set(await self._call(self.client.list_loras(), "listing adapters"))

    async def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        loaded: Loaded | None,
        *,
        request_id: str,
        sampling: Mapping[str, Any],
    ) -> Sequence[RequestOutput]:
        """Complete prompts (texts or token ids) on an adapter or, with None, on the base.

        `sampling` holds vLLM's SamplingParams by name. Raises ParameterInvalid, EngineDead.
        """
        streams = [
            self._last(prompt, loaded, f"{request_id}-{i}", sampling)
            for i, prompt in enumerate(prompts)
        ]
        return await asyncio.gather(*streams)

    async def stream(
        self,
        prompt: str | Sequence[int],
        loaded: Loaded | None,
        *,
        request_id: str,
        sampling: Mapping[str, Any],
    ) -> AsyncIterator[RequestOutput]:
        """Like `generate` for one prompt, yielding vLLM's output as it grows."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError

        given = prompt if isinstance(prompt, str) else TokensPrompt(prompt_token_ids=list(prompt))
        lora = loaded.request if loaded else None
        try:
            params = SamplingParams(**sampling)
            async for output in self.client.generate(given, params, request_id, lora_request=lora):
                yield output
        except EngineDeadError as error:
            raise EngineDead(self._death()) from error
        except (TypeError, ValueError) as error:
            raise ParameterInvalid(str(error)) from error

    async def _last(
        self,
        prompt: str | Sequence[int],
        loaded: Loaded | None,
        request_id: str,
        sampling: Mapping[str, Any],
    ) -> RequestOutput:
        last: RequestOutput | None = None
        async for output in self.stream(prompt, loaded, request_id=request_id, sampling=sampling):
            last = output
        if last is None:
            raise EngineError("vLLM ended a request without an answer")
        return last

    def tokenizer(self) -> Any:
        """The base's tokenizer, a transformers object."""
        return self.client.get_tokenizer()

    @property
    def dead(self) -> bool:
        """Whether vLLM's engine process has died."""
        return bool(self.client.errored)

    async def close(self) -> None:
        """Stop the engine's processes. Closing twice is allowed."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self.client.shutdown)

    async def _call(self, call: Any, doing: str) -> Any:
        """Await one engine call: bounded in time, its failure told as ours with its cause."""
        from vllm.v1.engine.exceptions import EngineDeadError

        started = time.monotonic()
        try:
            return await asyncio.wait_for(call, CALL_SECONDS)
        except TimeoutError as error:
            raise EngineError(
                f"{doing}: no answer from the engine in {time.monotonic() - started:.0f} s"
            ) from error
        except EngineDeadError as error:
            raise EngineDead(self._death()) from error
        except Exception as error:  # the engine sends any failure of its worker as a bare one
            raise EngineLoadFailed(f"{doing}: {_first_line(error)}") from error

    def _death(self) -> str:
        return "the engine has died; its log says why. Restart the server"


def _import_vllm() -> None:
    import vllm.v1.engine.async_llm  # noqa: F401  (the 13 s that a step tells of)


def _create(args: Namespace) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    engine_args = AsyncEngineArgs.from_cli_args(args)
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    return AsyncLLM.from_vllm_config(
        vllm_config=config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=args.enable_log_requests,
        disable_log_stats=args.disable_log_stats,
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__
