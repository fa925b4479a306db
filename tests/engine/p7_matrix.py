"""Mixed batches on real in-process engines, each answer compared with what it must be.

It owns the running and the counting, and asserts nothing: ``test_base_untouched`` does. It must not
use this package's own engine, so that what is tried here is vLLM with the kernel and nothing else.

Run as ``python -m tests.engine.p7_matrix OUT.json``. Base answers are compared with an engine that
has LoRA off, adapter answers with the same adapter alone and with transformers and PEFT. With
``STACKED_CPU_LORA=0`` it tries vLLM's own kernel, which needs ``--no-scores``: prompt
log-probabilities in a batch of several requests stop an engine that runs on it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import tiny

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # many engines, one after the other, in this process
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",  # the model is too small to share out
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
TOKENS = 16
PROMPT_LENGTHS = (1, 5, 23, 70, 11, 120)
BATCHED_TOKENS = 48  # less than the long prompts, so they prefill in chunks beside decoding rows
HEADS = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class Adapter:
    name: str
    number: int
    path: str

    def request(self) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest(self.name, self.number, self.path)


@dataclass(frozen=True)
class Request:
    """One prompt (by number) for an adapter, or for the base, arriving before step ``arrives``."""

    prompt: int
    adapter: Adapter | None
    arrives: int = 0

    @property
    def key(self) -> tuple[str, int]:
        return (self.adapter.name if self.adapter else "base", self.prompt)


@dataclass
class Report:
    kernel: str = ""
    engines: list[str] = field(default_factory=list)
    batches: int = 0
    base_answers: int = 0
    adapter_answers: int = 0
    prompt_scores: int = 0
    alone_answers: int = 0
    distinct_answers: int = 0
    smallest_margin: float = float("inf")
    wrong: dict[str, list[str]] = field(
        default_factory=lambda: {"base": [], "alone": [], "peft": [], "prompt scores": []}
    )
    with_scores: bool = True
    seconds: float = 0.0

    def compare(self, kind: str, label: str, got: Any, want: Any) -> None:
        if got != want:
            self.wrong[kind].append(f"{label}: {got} instead of {want}")


def make_prompts() -> list[list[int]]:
    rng = random.Random(8)
    words = range(300, tiny.VOCAB_SIZE)  # merged tokens: on a tied base the others embed as zero
    return [rng.choices(words, k=size) for size in PROMPT_LENGTHS]


@contextlib.contextmanager
def engine(base: Path, max_loras: int) -> Iterator[Any]:
    """An in-process engine, LoRA off for ``max_loras`` 0, that leaves nothing behind."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    lora = {"enable_lora": True, "max_loras": max_loras, "max_lora_rank": 16, "max_cpu_loras": 8}
    llm = LLM(
        model=str(base),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=16,
        max_num_batched_tokens=BATCHED_TOKENS,
        enable_prefix_caching=False,
        seed=0,
        **(lora if max_loras else {}),
    )
    try:
        yield llm.llm_engine
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def run(
    llm_engine: Any, requests: list[Request], prompts: list[list[int]], *, scores: bool = False
) -> list[Any]:
    """Run requests together, each added when its step comes; outputs are in request order."""
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0.0,
        max_tokens=TOKENS,
        ignore_eos=True,
        logprobs=2,
        prompt_logprobs=0 if scores else None,
    )
    waiting, done, step = dict(enumerate(requests)), {}, 0
    while len(done) < len(requests):
        for number in [n for n, request in waiting.items() if request.arrives <= step]:
            request = waiting.pop(number)
            llm_engine.add_request(
                str(number),
                {"prompt_token_ids": prompts[request.prompt]},
                params,
                lora_request=request.adapter.request() if request.adapter else None,
            )
        for output in llm_engine.step():
            if output.finished:
                done[int(output.request_id.split("-")[0])] = output
        step += 1
    return [done[number] for number in range(len(requests))]


def tokens_of(output: Any) -> list[int]:
    return list(output.outputs[0].token_ids)


def margin_of(output: Any) -> float:
    """The smallest distance in log-probability between the chosen token and the next best."""
    gaps = []
    for step in output.outputs[0].logprobs:
        best = sorted((entry.logprob for entry in step.values()), reverse=True)
        gaps.append(best[0] - best[1])
    return min(gaps)


def scores_of(output: Any) -> list[float]:
    """The log-probability of each prompt token but the first, to 3 places."""
    return [round(next(iter(p.values())).logprob, 3) for p in output.prompt_logprobs if p]


def batches(adapters: list[Adapter], seed: int) -> Iterator[list[Request]]:
    """Mixes of the base with 1 to all of the adapters: orders, lengths and arrivals are drawn."""
    rng = random.Random(seed)
    for count in range(1, len(adapters) + 1):
        chosen = rng.sample(adapters, count)
        askers = [*chosen, *chosen[: 6 - count], *[None] * rng.randint(3, 5)]
        for arrivals in (0, 12):  # all at once, and trickling in
            rng.shuffle(askers)
            yield [
                Request(rng.randrange(len(PROMPT_LENGTHS)), asker, rng.randint(0, arrivals))
                for asker in askers
            ]


def try_engine(
    report: Report,
    label: str,
    base: Path,
    max_loras: int,
    adapters: list[Adapter],
    golden: dict[int, Any],
    peft: dict[tuple[str, int], list[int]],
) -> None:
    prompts = make_prompts()
    with engine(base, max_loras) as llm_engine:
        alone = {}
        for adapter in adapters:
            requests = [Request(number, adapter) for number in range(len(prompts))]
            for request, output in zip(
                requests, run(llm_engine, requests, prompts, scores=report.with_scores), strict=True
            ):
                alone[request.key] = output
                report.smallest_margin = min(report.smallest_margin, margin_of(output))
                where = f"{label} {request.key}"
                report.compare("peft", where, tokens_of(output), peft[request.key])
        report.alone_answers += len(alone)
        report.distinct_answers += len({tuple(tokens_of(output)) for output in alone.values()})
        for seed, scores in ((max_loras, False), (max_loras + 10, report.with_scores)):
            for requests in batches(adapters, seed):
                report.batches += 1
                outputs = run(llm_engine, requests, prompts, scores=scores)
                for request, output in zip(requests, outputs, strict=True):
                    want = alone[request.key] if request.adapter else golden[request.prompt]
                    kind = "alone" if request.adapter else "base"
                    where = f"{label} batch {report.batches} {request.key}"
                    report.adapter_answers += request.adapter is not None
                    report.base_answers += request.adapter is None
                    report.compare(kind, where, tokens_of(output), tokens_of(want))
                    if scores:
                        report.prompt_scores += 1
                        worst = max(
                            (
                                abs(a - b)
                                for a, b in zip(scores_of(output), scores_of(want), strict=True)
                            ),
                            default=0.0,
                        )
                        report.compare("prompt scores", where, worst > 0.01, False)
    report.engines.append(f"{label}, max_loras {max_loras}")


def make_adapters(root: Path, base: Path, targets: list[tuple[str, ...]]) -> list[Adapter]:
    """An adapter for each tuple of target modules, with ranks from 2 to 16."""
    ranks = (8, 4, 16, 2, 8)
    return [
        Adapter(
            f"{root.name}{i}",
            i + 1,
            str(tiny.build_adapter(root / str(i), base, i, rank=ranks[i], target_modules=modules)),
        )
        for i, modules in enumerate(targets)
    ]


def try_base(report: Report, label: str, base: Path, plans: list[tuple[Any, ...]]) -> None:
    """Every plan (name, targets of each adapter, max_loras to try) on one base."""
    prompts = make_prompts()
    with engine(base, 0) as llm_engine:
        golden = {}
        for number in range(len(prompts)):
            golden[number] = run(llm_engine, [Request(number, None)], prompts, scores=True)[0]
    report.smallest_margin = min(report.smallest_margin, *map(margin_of, golden.values()))
    for number, answer in enumerate(tiny.greedy(base, prompts, TOKENS)):
        report.compare("peft", f"{label} base {number}", tokens_of(golden[number]), answer)
    for name, targets, slots in plans:
        adapters = make_adapters(base.parent / name, base, targets)
        peft = {
            (adapter.name, number): answer
            for adapter in adapters
            for number, answer in enumerate(tiny.greedy(base, prompts, TOKENS, adapter.path))
        }
        for max_loras in slots:
            try_engine(report, f"{label}, {name}", base, max_loras, adapters, golden, peft)


def main(out: str, *flags: str) -> None:
    os.environ.update(ENVIRONMENT)
    started, report = time.monotonic(), Report(with_scores="--no-scores" not in flags)
    from vllm.platforms import current_platform

    report.kernel = current_platform.get_punica_wrapper()
    linear = [
        tiny.ATTENTION,
        tiny.ALL_LINEAR,
        ("q_proj", "v_proj"),
        ("o_proj", "down_proj"),
        ("gate_proj", "up_proj", "k_proj"),
    ]
    heads = [("embed_tokens",), ("lm_head",), (*tiny.ATTENTION, *HEADS), ("up_proj", "lm_head")]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plain = tiny.build_base(root / "plain" / "base")
        try_base(
            report,
            "untied base",
            plain,
            [("linear", linear, (1, 2, 4)), ("heads", heads, (1, 2, 4))],
        )
        tied = tiny.build_base(root / "tied" / "base", tie_word_embeddings=True)
        try_base(report, "tied base", tied, [("heads", [*heads[:3], tiny.ATTENTION], (2,))])
    report.seconds = round(time.monotonic() - started, 1)
    Path(out).write_text(json.dumps(vars(report), indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
