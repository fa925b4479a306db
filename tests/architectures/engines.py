"""Engines in this process, one after the other, planned and loaded as the package does it.

It owns what makes a second engine in one process possible; it must not know what is right.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stacked.engine.machine import look
from stacked.engine.plan import make_plan
from stacked.engine.probe import probe as probe_of_class
from stacked.engine.support import require_build
from stacked.store import BaseModules
from stacked.store.adaptable import Adaptable
from tests.architectures.answers import LENGTH, PROMPTS, Answer
from tests.architectures.bases import OPTIONS

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",  # the models are too small to share out
    "VLLM_LOGGING_LEVEL": "CRITICAL",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""To be set before torch or vLLM is imported."""

_OPTIONS = {"max_model_len": 128, "kv_cache_memory_bytes": 64 * 1024**2, "max_loras": 2}


def prepare(*, serve: bool = True) -> None:
    """Import vLLM, ready for many engines; without `serve`, for what the models' classes say."""
    os.environ.update(ENVIRONMENT)
    from vllm.model_executor.models import registry

    # vLLM looks at a model's class in a process of its own, to keep CUDA out of this one. That
    # takes seconds for each architecture.
    registry._run_in_subprocess = lambda look_at: look_at()
    if not serve:
        from vllm.triton_utils import dispatcher

        # Half a second for each base, to put kernels where nothing will run them.
        dispatcher._rebind_kernels = lambda overrides: None
    gc.freeze()


def probe(base: Path) -> Adaptable:
    """What vLLM's class of the base applies adapters to. Raises what vLLM raises."""
    try:
        return probe_of_class(base, multimodal(base))
    finally:
        _forget()


@contextmanager
def engine(base: Path, *, lora: bool = True) -> Iterator[Any]:
    """A vLLM engine as planned for this base, or without LoRA. Raises what vLLM raises."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    plan = make_plan(
        base=base,
        shapes=BaseModules.read(base).modules,
        served_names=["base"],
        adapters=(),
        options=_OPTIONS | OPTIONS.get(base.parent.name, {}),
        machine=look(),
        build=require_build(),
    )
    options = {**plan.options, "distributed_executor_backend": "uni"}
    if not lora:
        options = {name: value for name, value in options.items() if "lora" not in name}
    options |= multimodal(base)
    extension = "stacked.engine.staging.StagingWorker"
    made = None
    try:
        made = LLMEngine.from_engine_args(
            EngineArgs(model=str(base), worker_extension_cls=extension, **options)
        )
        yield made
    finally:
        if made is not None:
            made.engine_core.shutdown()
        del made
        _forget()


def _forget() -> None:
    """Let go of what vLLM keeps in the process beside an engine."""
    from vllm import envs
    from vllm.distributed import destroy_distributed_environment, destroy_model_parallel
    from vllm.model_executor.layers import rotary_embedding

    # vLLM's `cleanup_dist_env_and_memory` looks through all modules and classes too, for seconds.
    envs.disable_envs_cache()
    rotary_embedding._ROPE_DICT.clear()  # a probe's are on the meta device
    destroy_model_parallel()
    destroy_distributed_environment()
    gc.collect()
    gc.freeze()


def multimodal(base: Path) -> dict[str, Any]:
    """Options for a base of several towers: what is asked here is text."""
    config = json.loads((base / "config.json").read_text())
    return {"limit_mm_per_prompt": {"image": 0, "video": 0}} if "vision_config" in config else {}


def load(llm: Any, number: int, path: Path) -> None:
    """Stage and adopt an adapter, as a start does, and activate it. Raises what vLLM raises."""
    llm.collective_rpc(
        "stacked_call",
        args=(
            "load",
            [(number, path.name, str(path))],
        ),
    )
    while "more" in llm.collective_rpc("stacked_call", args=("activate", number, 1.0)):
        pass


def remove(llm: Any, number: int) -> None:
    llm.collective_rpc("stacked_call", args=("remove", number))


def ask(llm: Any, number: int = 0, path: Path | None = None) -> Answer:
    """What the engine answers to the prompts, on the base or on an adapter that was loaded."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    lora = LoRARequest(path.name, number, str(path)) if path else None
    sampling = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True, logprobs=1)
    for at, prompt in enumerate(PROMPTS):
        llm.add_request(str(at), {"prompt_token_ids": prompt}, sampling, lora_request=lora)
    done = {}
    while llm.has_unfinished_requests():
        for output in llm.step():
            if output.finished:
                done[int(output.request_id.partition("-")[0])] = output.outputs[0]
    outputs = [done[at] for at in range(len(PROMPTS))]
    return Answer(
        [list(output.token_ids) for output in outputs],
        [
            [chosen[token].logprob for chosen, token in zip(*each, strict=True)]
            for each in ((output.logprobs, output.token_ids) for output in outputs)
        ],
    )
