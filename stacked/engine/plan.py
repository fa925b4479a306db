"""From a group and a machine to the engine's settings, with the arithmetic shown.

A plan is a value: nothing is started, and no vLLM is imported. What a user set is never
changed; only the rest is chosen here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacked.core import Adapter
from stacked.engine.architectures import cpu_dtype
from stacked.engine.experts import check_no_experts, is_expert
from stacked.engine.hopper import needs_one_stage, note
from stacked.engine.machine import GIB, Machine
from stacked.engine.options import check_names
from stacked.engine.speculation import Speculation, check_on_cpu, read_speculation
from stacked.engine.support import Build
from stacked.errors import EngineOptionInvalid, GroupImpossible
from stacked.store import RANK_LADDER, rung

# vLLM's own default. Lower than this would save little and refuse most adapters loaded later.
_LEAST_RANK = 16
# Every slot takes memory, used or not; `engine.max_loras` sets another number.
_MOST_SLOTS = {"cpu": 8, "cuda": 32}
_DTYPE_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
# Three processes that import torch and vLLM, and activations.
_CPU_OVERHEAD = 3 * GIB
# Measured on two cores (docs/performance.md): half of it costs 7 % of the throughput.
_STEP_TOKENS_PER_CORE = 128
# vLLM's own for a server on a CPU (`EngineArgs.get_batch_defaults`).
_VLLM_STEP_TOKENS = 2048
_VLLM_SEQUENCES = 128
# The share of the memory left over that adapters in host memory may take.
_HOST_SHARE = 0.75

Shapes = Mapping[str, tuple[int, int] | None]


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What the engine will be started with. `options` are vLLM's; bytes are estimates."""

    base: str
    served_names: tuple[str, ...]
    device: str
    options: Mapping[str, Any]
    max_rank: int
    slots: int
    host_adapters: int
    rows: tuple[tuple[str, str], ...]
    """Shown before the engine starts: label and value."""
    memory_bytes: int = 0
    """What the engine takes of the memory it runs in; on GPUs, of its share of each."""

    def text(self) -> str:
        """The plan as aligned lines."""
        width = max(len(label) for label, _ in self.rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in self.rows)


def make_plan(
    *,
    base: Path,
    shapes: Shapes,
    served_names: Sequence[str],
    adapters: Sequence[Adapter],
    options: Mapping[str, Any],
    machine: Machine,
    build: Build,
) -> EnginePlan:
    """Choose what was left open for this group on this machine.

    `shapes` maps the base's modules to (out_features, in_features). Raises GroupImpossible with
    the sum if it cannot fit, EngineOptionInvalid if the user's options contradict the group,
    AdapterUnsupported if this build cannot apply an adapter of the group.
    """
    check_names(options)
    given = {name.replace("-", "_"): value for name, value in options.items()}
    given.pop("enable_lora", None)
    speculation = read_speculation(given)
    shapes, notes = _without_experts(shapes, adapters, build)
    config = _read_config(base)
    dtype, why = _dtype(given, config, machine, build)
    width = _DTYPE_BYTES.get(dtype, 2)
    rank, slots = _rank(given, adapters), _slots(given, adapters, build)
    slot = _slot_bytes(shapes, rank, width)
    draft = speculation.model if speculation else None
    weights = _weight_bytes(base, width, config)
    need = [("base weights", weights), (f"{slots} slots of rank {rank}", slots * slot)]
    if draft:
        need.append(("draft model", _weight_bytes(draft, width, _read_config(draft))))
    free, chosen = machine.memory_bytes, {}
    if build.device == "cpu":
        cache = _cpu_cache_bytes(given, config, width, machine)
        need += [("KV cache", cache), ("vLLM's processes", _CPU_OVERHEAD)]
        free -= _sum(need)
        chosen = _cpu_options(given, machine, cache, speculation)
    each = _host_bytes(adapters, slot, width)
    host = _host_adapters(given, adapters, slots, each, free)
    if build.device == "cpu":
        need.append((f"{host} adapters in host memory", host * each))
    room, place = _room(given, machine, build)
    chosen |= {"dtype": dtype, "max_lora_rank": rank, "max_loras": slots, "max_cpu_loras": host}
    merged = chosen | given | {"enable_lora": True}
    _check_speculation(merged, speculation, build)
    notes += _more_notes(speculation, machine, build)
    _fit(need, room, place)
    return EnginePlan(
        base=str(base),
        served_names=tuple(served_names),
        device=build.device,
        options=merged,
        max_rank=int(merged["max_lora_rank"]),
        slots=int(merged["max_loras"]),
        host_adapters=int(merged["max_cpu_loras"]),
        rows=(
            *_rows(build, machine, base, dtype, why, adapters, merged, need, room, place),
            *notes,
        ),
        memory_bytes=_sum(need) if build.device == "cpu" else room,
    )


def _without_experts(
    shapes: Shapes, adapters: Sequence[Adapter], build: Build
) -> tuple[Shapes, list[tuple[str, str]]]:
    """The modules that this build applies adapters to, and a row about what is left out."""
    if build.device != "cpu" or not any(map(is_expert, shapes)):
        return shapes, []
    check_no_experts(adapters, shapes)
    row = ("experts", "without adapters: vLLM's kernels for them on a CPU support none")
    return {name: shape for name, shape in shapes.items() if not is_expert(name)}, [row]


def _more_notes(
    speculation: Speculation | None, machine: Machine, build: Build
) -> list[tuple[str, str]]:
    notes = [("LoRA kernel", note())] if needs_one_stage(build, machine.gpus) else []
    return [*notes, ("speculation", str(speculation))] if speculation else notes


def _cpu_options(
    given: Mapping[str, Any], machine: Machine, cache: int, speculation: Speculation | None
) -> dict[str, Any]:
    return {
        "kv_cache_memory_bytes": cache,
        "enforce_eager": True,
        "distributed_executor_backend": "uni" if one_process(machine.cores) else "mp",
        **_cpu_step(given, machine, speculation),
    }


def _check_speculation(
    merged: Mapping[str, Any], speculation: Speculation | None, build: Build
) -> None:
    if speculation is None:
        return
    if build.device == "cpu":
        check_on_cpu(speculation)
    _check_step(merged, speculation)


def _room(given: Mapping[str, Any], machine: Machine, build: Build) -> tuple[int, str]:
    """The bytes that the engine may use, and of what. Raises GroupImpossible: too few GPUs."""
    if build.device == "cpu":
        return machine.memory_bytes, "this machine's memory"
    share = float(given.get("gpu_memory_utilization", 0.9))
    gpus = int(given.get("tensor_parallel_size", 1))
    if len(machine.gpus) < gpus:
        raise GroupImpossible(f"{gpus} GPUs are asked for, {len(machine.gpus)} found")
    room = sum(gpu.memory_bytes for gpu in machine.gpus[:gpus]) * share
    return int(room), f"{share:.0%} of GPU memory"


def one_process(cores: int) -> bool:
    """Whether an engine on a CPU of so many cores computes in its own process, without a worker's.

    With two cores, a worker takes one and the engine's process, polling for the worker's answers,
    the other, which HTTP needs. With more cores, vLLM's own way binds threads to cores.
    """
    return cores <= 2


def _read_config(base: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    text = tree.get("text_config")  # multimodal bases have the language model's part here
    return tree | text if isinstance(text, dict) else tree


def _dtype(
    given: Mapping[str, Any], config: Mapping[str, Any], machine: Machine, build: Build
) -> tuple[str, str]:
    own = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    asked = str(given.get("dtype", "auto"))
    needed = cpu_dtype(config) if build.device == "cpu" else None
    if needed is not None:
        dtype, part = needed
        if asked not in ("auto", dtype):
            raise EngineOptionInvalid(
                f"engine.dtype: {asked} is set, but vLLM computes the {part} of this base only in "
                f"{dtype} on a CPU; remove the option"
            )
        return dtype, f"on a CPU {part} are computed only in this"
    if asked != "auto":
        return asked, "as configured"
    if build.device == "cuda":
        return ("bfloat16" if own == "float32" else own), "the base's own"
    if own != "float32" and not machine.has_fast_bfloat16:
        return "float32", "this CPU has no bfloat16 instructions; float32 is several times faster"
    return "float32", "exact"


def _rank(given: Mapping[str, Any], adapters: Sequence[Adapter]) -> int:
    largest = max((adapter.rank for adapter in adapters), default=0)
    if "max_lora_rank" not in given:
        return max(rung(largest), _LEAST_RANK)
    asked = _whole(given, "max_lora_rank")
    if asked not in RANK_LADDER:
        raise EngineOptionInvalid(
            f"engine.max_lora_rank: {asked} is not one of {', '.join(map(str, RANK_LADDER))}"
        )
    if asked < largest:
        raise EngineOptionInvalid(
            f"engine.max_lora_rank: {asked} is below rank {largest}, which an adapter of the "
            f"group has; set {rung(largest)} or remove the option"
        )
    return asked


def _slots(given: Mapping[str, Any], adapters: Sequence[Adapter], build: Build) -> int:
    if "max_loras" in given:
        return _whole(given, "max_loras")
    return max(1, min(len(adapters), _MOST_SLOTS[build.device]))


def _host_adapters(
    given: Mapping[str, Any],
    adapters: Sequence[Adapter],
    slots: int,
    host_bytes: int,
    room: int,
) -> int:
    """How many adapters the engine holds in host memory: two whole groups if they fit.

    Others are read again from the store when they are next requested.
    """
    if "max_cpu_loras" in given:
        return _whole(given, "max_cpu_loras")
    wanted = max(slots + 1, 2 * len(adapters), 8)
    fit = int(room * _HOST_SHARE) // host_bytes if host_bytes else wanted
    return max(slots, min(wanted, fit))


def _whole(given: Mapping[str, Any], name: str) -> int:
    try:
        number = int(given[name])
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise EngineOptionInvalid(f"engine.{name}: {given[name]!r} is not a whole number above 0")
    return number


def _slot_bytes(shapes: Shapes, rank: int, width: int) -> int:
    """One slot: lora_A [rank, in] and lora_B [out, rank] for every module that vLLM can adapt."""
    sizes = (out + inner for name, (out, inner) in _linear(shapes) if "embed" not in name)
    return rank * width * sum(sizes)


def _host_bytes(adapters: Sequence[Adapter], slot_bytes: int, width: int) -> int:
    """What one adapter takes of host memory, where it has its own rank and modules.

    Twice the group's largest, as the next group's may be larger; at most a full slot.
    """
    largest = max((adapter.bytes for adapter in adapters), default=slot_bytes)
    return min(slot_bytes, 2 * largest * width // _DTYPE_BYTES["float16"])


def _linear(shapes: Shapes) -> list[tuple[str, tuple[int, int]]]:
    return [(name, shape) for name, shape in shapes.items() if shape is not None]


def _weight_bytes(base: Path, width: int, config: Mapping[str, Any]) -> int:
    stored = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    own = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    if "quantization_config" in config:
        return stored
    return stored * width // _DTYPE_BYTES.get(own, 2)


def _cpu_cache_bytes(
    given: Mapping[str, Any], config: Mapping[str, Any], width: int, machine: Machine
) -> int:
    """The KV cache: 32 sequences of full length, within 1 GiB and a quarter of memory."""
    asked = given.get("kv_cache_memory_bytes")
    if isinstance(asked, int):
        return asked
    heads = int(config.get("num_attention_heads", 1))
    head = int(config.get("head_dim") or int(config.get("hidden_size", 0)) // heads)
    per_token = (
        2
        * int(config.get("num_hidden_layers", 1))
        * int(config.get("num_key_value_heads", heads))
        * head
        * width
    )
    length = given.get("max_model_len") or config.get("max_position_embeddings", 2048)
    tokens = 32 * int(length) if str(length).isdigit() else 32 * 2048
    return max(GIB, min(per_token * tokens, machine.memory_bytes // 4))


def _cpu_step(
    given: Mapping[str, Any], machine: Machine, speculation: Speculation | None
) -> dict[str, int]:
    """How many tokens one step may read, and so how long a prompt delays other requests.

    vLLM's 2048 take a small base seconds on two cores; see docs/performance.md. With drafted
    tokens, as many sequences at once as such a step has room for.
    """
    if given.get("enable_chunked_prefill") is False:  # a prompt must fit a step then
        return {}
    each = speculation.rows if speculation else 1
    least = each * (_whole(given, "max_num_seqs") if "max_num_seqs" in given else 1)
    per_step = min(_VLLM_STEP_TOKENS, _STEP_TOKENS_PER_CORE * max(2, machine.cores))
    chosen = {"max_num_batched_tokens": max(least, per_step)}
    if speculation:
        step = _whole({**chosen, **given}, "max_num_batched_tokens")
        chosen["max_num_seqs"] = max(1, min(_VLLM_SEQUENCES, step // each))
    return chosen


def _check_step(merged: Mapping[str, Any], speculation: Speculation) -> None:
    """vLLM accepts adapters with drafts only if a step has room for the drafts of all sequences."""
    names = ("max_num_batched_tokens", "max_num_seqs")
    if not all(name in merged for name in names):
        return
    step, sequences = (_whole(merged, name) for name in names)
    if step < sequences * speculation.rows:
        raise EngineOptionInvalid(
            f"engine.max_num_batched_tokens: {step} is below {sequences * speculation.rows}, which "
            f"{sequences} sequences (max_num_seqs) with {speculation.tokens} drafted tokens each "
            "need; raise it, or lower max_num_seqs or num_speculative_tokens"
        )


def _sum(need: Sequence[tuple[str, int]]) -> int:
    return sum(size for _, size in need)


def _fit(need: Sequence[tuple[str, int]], room: int, place: str) -> None:
    total = _sum(need)
    if total <= room:
        return
    terms = " + ".join(f"{label} {_human(size)}" for label, size in need)
    raise GroupImpossible(
        f"the group does not fit: {terms} = {_human(total)}, but {place} is {_human(room)}. "
        "Lower engine.max_loras, engine.max_cpu_loras, engine.max_lora_rank or "
        "engine.max_model_len, or serve a smaller base."
    )


def _rows(
    build: Build,
    machine: Machine,
    base: Path,
    dtype: str,
    why: str,
    adapters: Sequence[Adapter],
    merged: Mapping[str, Any],
    need: Sequence[tuple[str, int]],
    room: int,
    place: str,
) -> tuple[tuple[str, str], ...]:
    where = machine.gpus[0].name if build.device == "cuda" and machine.gpus else machine.cpu
    ranks = sorted({adapter.rank for adapter in adapters})
    spread = ", ".join(map(str, ranks)) if ranks else "none"
    memory = " + ".join(f"{_human(size)} {label}" for label, size in need)
    return (
        ("engine", f"{build.distribution} {build.version} on {where} ({machine.cores} cores)"),
        ("base", base.name),
        ("dtype", f"{dtype} ({why})"),
        (
            "adapters",
            f"{len(adapters)} of rank {spread}; {merged['max_loras']} slots of rank "
            f"{merged['max_lora_rank']}, {merged['max_cpu_loras']} in host memory",
        ),
        ("memory", f"{memory}, of {_human(room)} ({place})"),
    )


def _human(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 1024**2:.0f} MiB"
