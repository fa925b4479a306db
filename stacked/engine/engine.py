"""One vLLM engine: start, load, remove and list adapters, generate, and say whether it is alive.

Adapters are loaded under names that carry their content digest, with ids that are used once, so
that no cache of vLLM's can mix two contents.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stacked.chat import CHAT_FILE, stored_chat
from stacked.core import Adapter, Digest
from stacked.engine import preload
from stacked.engine.adaptable import together
from stacked.engine.calls import Calls
from stacked.engine.canary import canary_request, canary_scores
from stacked.engine.causes import Causes
from stacked.engine.chat import Chats, chat_text
from stacked.engine.creating import create, import_vllm, prepare
from stacked.engine.loaded import Loaded, Resident, batches
from stacked.engine.options import parse_options
from stacked.engine.plan import EnginePlan
from stacked.engine.platform import base_is_protected, enabled
from stacked.engine.processes import Ended, Processes
from stacked.engine.turns import urgent
from stacked.errors import EngineError, EngineLoadFailed, EngineStartFailed, ParameterInvalid
from stacked.steps import Progress, Silent, Start
from stacked.store.adaptable import Adaptable

if TYPE_CHECKING:
    from argparse import Namespace

    from vllm.outputs import RequestOutput

# Removals are Python in the engine's loop; this many take about a millisecond.
_REMOVED_AT_ONCE = 16

_EXTENSION = "stacked.engine.staging.StagingWorker"
_EXECUTOR = "distributed_executor_backend"


class Engine:
    """A running vLLM. Make one with `await Engine.start(plan)`; `await close()` ends it."""

    def __init__(
        self,
        plan: EnginePlan,
        args: Namespace,
        client: Any,
        causes: Causes | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.plan = plan
        self.args = args
        self._numbers = itertools.count(1)
        self._canaries = itertools.count(1)
        self._changing = asyncio.Lock()
        self._processes = ended = processes or Processes([])
        self.calls = Calls(client, causes, lambda: ended.first is not None)
        self._closed = False
        self.suspects: frozenset[Digest] = frozenset()
        """The adapters that a start is loading or scoring: why it dies, if it does."""

    @classmethod
    async def start(cls, plan: EnginePlan, *, progress: Progress | None = None) -> Engine:
        """Start vLLM as planned; 20 to 60 s. Raises EngineStartFailed, EngineOptionInvalid.

        Follow with `warm` before anyone waits for an answer.
        The slow work is done in a thread, so that this loop can answer "starting" meanwhile.
        """
        tell = progress or Silent()
        prepare()
        tell.step(Start.IMPORT)
        await import_vllm()
        preload.use()
        options = {
            **plan.options,
            "model": plan.base,
            "served_model_name": [*plan.served_names],
            "worker_extension_cls": _EXTENSION,
        }
        args = await asyncio.to_thread(parse_options, options)
        tell.step(Start.CREATE)
        if enabled() and not base_is_protected():
            raise EngineStartFailed(
                "vLLM passed over Stacked's CPU platform, so base requests would get an adapter's "
                "weights; unset VLLM_PLUGINS and VLLM_TARGET_DEVICE, or set STACKED_CPU_LORA=0 to "
                "accept that"
            )
        return cls(plan, args, *await create(args))

    async def load(self, adapter: Adapter) -> Loaded:
        """Stage, adopt and activate an adapter. Raises EngineLoadFailed, EngineDead.

        The same adapter loaded twice is two handles; callers have one per digest.
        """
        loaded = await self.stage(adapter)
        try:
            await self.adopt(loaded)
            await self.activate(loaded)
        except BaseException:
            await self.calls.quietly(self.discard(loaded))
            await self.calls.quietly(self.remove(loaded))
            raise
        return loaded

    async def load_all(
        self,
        adapters: Sequence[Adapter],
        loaded_so_far: Callable[[int], None],
        alone: Collection[Digest] = (),
    ) -> Mapping[Digest, Loaded]:
        """Load these as fast as possible, without regard to requests: for a start.

        `loaded_so_far` is called with their number. The first ones fill the slots; those in `alone`
        are the last, one after the other. Raises EngineLoadFailed; what was loaded before stays.
        """
        loaded: dict[Digest, Loaded] = {}
        for batch in batches(adapters, alone):
            self.suspects = frozenset(adapter.digest for adapter in batch)
            some = [await self._handle(adapter) for adapter in batch]
            wanted = [(each.number, each.name, each.request.lora_path) for each in some]
            async with self._changing:
                await self._load_some(some, wanted)
            loaded |= {each.digest: each for each in some}
            loaded_so_far(len(loaded))
        for each in loaded.values():
            self.suspects = frozenset({each.digest})
            if not await self.activate(each):
                break
        self.suspects = frozenset()
        await self.calls.workers("settle", doing="settling the worker's memory")
        return loaded

    async def _load_some(
        self, some: Sequence[Loaded], wanted: Sequence[tuple[int, str, str]]
    ) -> None:
        try:
            await self.calls.workers("load", wanted, doing="loading adapters")
        except EngineLoadFailed as error:
            here = (await self.resident()).host  # those before the one that failed stay
            error.digest = next((each.digest for each in some if each.number not in here), None)
            raise

    async def adaptable(self) -> Adaptable:
        """Which modules of the base adapters are applied to, as the workers wrapped them."""
        answers = await self.calls.workers("adaptable", doing="finding what can be adapted")
        return together([Adaptable.from_json(each.encode()) for each in answers])

    async def stage(self, adapter: Adapter) -> Loaded:
        """Read an adapter into the worker's memory, in a thread; requests cannot use it yet.

        Follow with `adopt` or `discard`. Raises EngineLoadFailed with the worker's reason, and
        after CALL_SECONDS without an end; nothing is left staged then.
        """
        loaded = await self._handle(adapter)
        doing = f"loading adapter {loaded.digest}"
        path = loaded.request.lora_path
        try:
            await self.calls.read(loaded.number, loaded.name, path, doing=doing)
        except BaseException:
            await self.calls.quietly(self.discard(loaded))
            raise
        return loaded

    async def adopt(self, loaded: Loaded) -> None:
        """Make a staged adapter one of the engine's own: from now on requests may use it.

        If host memory is full, the least recently used adapter is evicted. Idempotent. Raises
        EngineLoadFailed.
        """
        doing = f"adopting adapter {loaded.digest}"
        async with self._changing:
            try:
                await self.calls.workers("adopt", loaded.number, doing=doing)
            except EngineLoadFailed:
                # One worker of several may have taken it; a staged copy stays where it is.
                await self.calls.quietly(self.calls.workers("remove", loaded.number, doing=doing))
                raise

    async def activate(self, loaded: Loaded) -> bool:
        """Copy an adopted adapter into a free slot, a part per step; False if no slot is free.

        Otherwise vLLM does it at the first request, all at once, in the least recently used slot.
        """
        doing = f"activating adapter {loaded.digest}"
        async with self._changing:
            while True:
                states = await self.calls.part("activate", loaded.number, doing=doing)
                if "more" not in states:
                    return "full" not in states

    async def discard(self, *loaded: Loaded) -> None:
        """Drop adapters that are staged and not adopted, read or not. Idempotent."""
        names = ", ".join(each.digest for each in loaded[:3])
        numbers = [each.number for each in loaded]
        await self.calls.workers("discard", *numbers, doing=f"discarding adapters {names}")

    async def resident(self) -> Resident:
        """Which adapters the engine holds, and where; with several workers, those that all hold."""
        answers = await self.calls.workers("resident", doing="asking what is resident")
        return Resident.of(answers)

    async def remove(self, *loaded: Loaded) -> None:
        """Remove adapters and check that no engine lists them. Removing twice is allowed.

        Only when no request uses them: vLLM would load one again from disk for a late one.
        """
        async with self._changing:
            here = await self.list()
            there = {each.number: each.name for each in loaded if each.number in here}
            numbers = [*there]
            for at in range(0, len(numbers), _REMOVED_AT_ONCE):
                some = numbers[at : at + _REMOVED_AT_ONCE]
                await self.calls.workers("remove", *some, doing=f"removing {there[some[0]]}")
            for engine, held in enumerate(await self.calls.lists() if there else ()):
                if kept := sorted(there.keys() & held):
                    names = ", ".join(there[number] for number in kept[:3])
                    raise EngineError(
                        f"vLLM still lists {names} after removal ({len(kept)} adapters)"
                        f"{self.calls.on(engine)}"
                    )

    async def list(self) -> set[int]:
        """The numbers of the adapters in host memory, of whichever engine."""
        return set[int]().union(*await self.calls.lists())

    async def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        loaded: Loaded | None,
        *,
        request_id: str,
        sampling: Mapping[str, Any],
        cards: Sequence[int] = (),
    ) -> Sequence[RequestOutput]:
        """Complete prompts (texts or token ids) on an adapter or, with None, on the base.

        `sampling` holds vLLM's SamplingParams by name, `cards` are GPUs one of which is to answer.
        Raises ParameterInvalid, EngineDead.
        """
        rank = self.calls.rank_for(cards)
        streams = [
            self._last(prompt, loaded, f"{request_id}-{i}", sampling, rank)
            for i, prompt in enumerate(prompts)
        ]
        return await asyncio.gather(*streams)

    async def canary(self, loaded: Loaded | None) -> Sequence[Sequence[float]]:
        """How an adapter (None: the base) continues a few tokens: the best logprobs, in order.

        On each engine, by rank. The same weights give the same numbers up to float noise; NaN where
        the weights are broken. Raises EngineLoadFailed, EngineDead, EngineSilent.
        """
        prompt, sampling = canary_request(self.tokenizer(), self.client.vllm_config)
        name = f"canary-{next(self._canaries)}"
        with urgent():
            answers = await self._on_each(prompt, loaded, name, sampling)
        return [canary_scores(answer) for answer in answers]

    async def _on_each(
        self, prompt: Sequence[int], loaded: Loaded | None, name: str, sampling: Mapping[str, Any]
    ) -> Sequence[RequestOutput]:
        """The same request to each engine."""

        def run(rank: int) -> Awaitable[RequestOutput]:
            return self._last(prompt, loaded, f"{name}-{rank}", sampling, rank)

        return await self.calls.each(run, f"scoring {loaded.name if loaded else 'the base'}")

    async def stream(
        self,
        prompt: str | Sequence[int],
        loaded: Loaded | None,
        *,
        request_id: str,
        sampling: Mapping[str, Any],
        rank: int | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Like `generate` for one prompt, yielding vLLM's output as it grows.

        `rank`: of the engine that is to answer, if it matters.
        """
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError

        given = prompt if isinstance(prompt, str) else TokensPrompt(prompt_token_ids=list(prompt))
        lora = loaded.request if loaded else None
        try:
            params = SamplingParams(**sampling)
            async for output in self.client.generate(
                given, params, request_id, lora_request=lora, data_parallel_rank=rank
            ):
                yield output
        except EngineDeadError as error:
            raise self.calls.death() from error
        except (TypeError, ValueError) as error:
            raise ParameterInvalid(str(error)) from error

    async def _last(
        self,
        prompt: str | Sequence[int],
        loaded: Loaded | None,
        request_id: str,
        sampling: Mapping[str, Any],
        rank: int | None = None,
    ) -> RequestOutput:
        last: RequestOutput | None = None
        stream = self.stream(prompt, loaded, request_id=request_id, sampling=sampling, rank=rank)
        async for output in stream:
            last = output
        if last is None:
            raise EngineError("vLLM ended a request without an answer")
        return last

    @contextlib.asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[None]:
        """Within the block, an engine that computes alone on a CPU has a core for its loop.

        This process leaves that core meanwhile. Without a core to take, nothing changes.
        """
        options, alone = self.plan.options, self.calls.engines == 1
        if self.plan.device == "cpu" and alone and options.get(_EXECUTOR) == "uni":
            async with self.calls.core_for_loop():
                yield
        else:
            yield

    @cached_property
    def chats(self) -> Chats:
        """The chat templates of adapters, and the process that runs them."""
        return Chats(self.client.renderer, self.args.chat_template)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], loaded: Loaded | None) -> str:
        """Messages rendered by a model's chat template; blocks.

        Raises ChatTemplateInvalid with the template's own reason.
        """
        return chat_text(self.tokenizer(), messages, loaded.chat if loaded else None)

    @property
    def client(self) -> Any:
        """vLLM's `AsyncLLM`."""
        return self.calls.client

    def tokenizer(self) -> Any:
        """The base's tokenizer, a transformers object."""
        return self.client.get_tokenizer()

    @property
    def dead(self) -> bool:
        """Whether vLLM's engine process has died."""
        return bool(self.client.errored)

    @property
    def scores_prompts(self) -> bool:
        """Whether logprobs of prompts can be requested; with this option they end the engine."""
        return not self.args.kv_sharing_fast_prefill

    @property
    def seats(self) -> int:
        """How many requests vLLM runs at once, on all engines."""
        most: int = self.client.vllm_config.scheduler_config.max_num_seqs
        return most * self.calls.engines

    @property
    def full(self) -> bool:
        """Whether vLLM has as many requests as it runs at once."""
        return len(self.client.output_processor.request_states) >= self.seats

    @property
    def reading(self) -> bool:
        """Whether a request waits for its first token."""
        states = self.client.output_processor.request_states.values()
        return any(state.is_prefilling for state in states)

    async def step(self) -> None:
        """Return when the engine's loop has come round once more: between two of its steps.

        With several engines, when each has. Raises EngineDead.
        """
        await self.calls.step()

    def kill(self) -> None:
        """End an engine that answers no more, and those with it."""
        self._processes.kill(self.calls.silent)

    def under_dead(self, held: Collection[Loaded | None]) -> Collection[Loaded | None]:
        """Those of `held` with requests on the engine that died; all of them if it is not known."""
        rank = self._processes.rank
        return held if rank is None else self.calls.with_requests(rank, held)

    async def ended(self) -> Ended:
        """How a dead engine ended. Whoever still waits for a call gets EngineDead."""
        self.calls.end()
        return await asyncio.to_thread(self._processes.ended)

    async def close(self) -> None:
        """Stop the engine's processes. Closing twice is allowed."""
        if self._closed:
            return
        self._closed = True
        self.calls.end_of_start()
        if "chats" in vars(self):
            await asyncio.to_thread(self.chats.close)
        await asyncio.to_thread(self.client.shutdown)

    async def _handle(self, adapter: Adapter) -> Loaded:
        from vllm.lora.request import LoRARequest  # vLLM is imported when an engine is

        chat = None
        if (adapter.path / CHAT_FILE).is_file():
            chat = await asyncio.to_thread(lambda: self.chats.own(stored_chat(adapter.path)))
        number = next(self._numbers)
        name = f"{adapter.digest}.{number}"
        request = LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(adapter.path))
        return Loaded(adapter.digest, name, number, request, chat)

    async def warm(self) -> None:
        """Do once, before any request, what would make the first requests slow.

        A canary on an adapter of zeros touches the slots' memory, and its logprobs have torch
        compile what counts ranks, which takes seconds; for the rows of longer prompts once more.
        """
        from vllm.lora.request import LoRARequest

        if not self.args.enable_lora:  # a benchmark measures the engine without it, too
            return
        number = next(self._numbers)
        request = LoRARequest(lora_name=f"warm.{number}", lora_int_id=number, lora_path="warm")
        loaded = Loaded(Digest("warm"), request.lora_name, number, request)
        doing = "warming the adapters' memory"
        await self.calls.workers("warm", number, request.lora_name, "warm", doing=doing)
        for each in (loaded, None, loaded, None):
            await self.canary(each)
        if self.scores_prompts:
            sampling = {"max_tokens": 1, "prompt_logprobs": 0}
            await self._on_each([1, 2, 3, 4], None, "warm", sampling)
        await self.remove(loaded)
        await self.calls.workers("settle", doing=doing)
        self.calls.end_of_start()
