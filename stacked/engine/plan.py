"""From a group and a machine to the engine's settings, with the arithmetic shown.

A plan is a value: nothing is started, and no vLLM is imported. What a user set is never
changed; only the rest is chosen here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacked.core import Adapter
from stacked.engine.cpu_bases import check_no_experts, cpu_dtype, is_expert
from stacked.engine.hopper import needs_one_stage, note
from stacked.engine.machine import GIB, Machine
from stacked.engine.options import check_names
from stacked.engine.speculation import check_on_cpu, read_speculation
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
_ENGINES = "data_parallel_size"
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

    @property
    def gpus(self) -> int:
        """How many GPUs it takes, numbered from 0; on a CPU, how many engines there are."""
        return gpus_of(self.options)

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
    return _Planner(base, shapes, adapters, given, machine, build).plan(tuple(served_names))


@dataclass
class _Planner:
    """The choices for one group, from what the user set and what the machine has."""

    base: Path
    shapes: Shapes
    adapters: Sequence[Adapter]
    given: dict[str, Any]
    machine: Machine
    build: Build

    def __post_init__(self) -> None:
        self.on_cpu = self.build.device == "cpu"
        self.engines = engines_of(self.given)
        self.notes: list[tuple[str, str]] = []
        self.speculation = read_speculation(self.given)
        self.shapes = self._adaptable(self.shapes)
        self.config = _read_config(self.base)
        self.dtype, self.why = self._dtype()
        self.width = _DTYPE_BYTES.get(self.dtype, 2)

    def plan(self, served_names: tuple[str, ...]) -> EnginePlan:
        rank, slots = self._rank(), self._slots()
        slot = self._slot_bytes(rank)
        need = [("base weights", self._weight_bytes(self.base, self.config))]
        need.append((f"{slots} slots of rank {rank}", slots * slot))
        if self.speculation and (draft := self.speculation.model):
            need.append(("draft model", self._weight_bytes(draft, _read_config(draft))))
        room, place = self._room()
        free, each = self.machine.memory_bytes // self.engines, self._host_bytes(slot)
        chosen: dict[str, Any] = {}
        if self.on_cpu:
            cache = self._cpu_cache_bytes()
            need += [("KV cache", cache), ("vLLM's processes", _CPU_OVERHEAD)]
            free -= _sum(need)
            chosen = self._cpu_options(cache)
        host = self._host_adapters(slots, each, free)
        if self.on_cpu:
            need.append((f"{host} adapters in host memory", host * each))
        chosen |= {"dtype": self.dtype, "max_lora_rank": rank, "max_loras": slots}
        chosen["scheduling_policy"] = "priority"  # requests have theirs from `turns`
        merged = chosen | {"max_cpu_loras": host} | self.given | {"enable_lora": True}
        if needs_one_stage(self.build, self.machine.gpus):
            self.notes.append(("LoRA kernel", note()))
        self._check_speculation(merged)
        _fit(need, room, place)
        return EnginePlan(
            base=str(self.base),
            served_names=served_names,
            device=self.build.device,
            options=merged,
            max_rank=rank,
            slots=slots,
            host_adapters=host,
            rows=(*self._rows(rank, slots, host), _memory_row(need, room, place), *self.notes),
            memory_bytes=self.engines * (_sum(need) if self.on_cpu else room),
        )

    def _adaptable(self, shapes: Shapes) -> Shapes:
        """The modules that this build applies adapters to."""
        if not self.on_cpu or not any(map(is_expert, shapes)):
            return shapes
        check_no_experts(self.adapters, shapes)
        why = "without adapters: vLLM's kernels for them on a CPU support none"
        self.notes.append(("experts", why))
        return {name: shape for name, shape in shapes.items() if not is_expert(name)}

    def _cpu_options(self, cache: int) -> dict[str, Any]:
        return {
            "kv_cache_memory_bytes": cache,
            "enforce_eager": True,
            "distributed_executor_backend": "uni" if one_process(self._cores) else "mp",
            **self._cpu_step(),
        }

    @property
    def _cores(self) -> int:
        """Of each engine."""
        return max(1, self.machine.cores // self.engines)

    def _cpu_step(self) -> dict[str, int]:
        """How many tokens one step may read, and so how long a prompt delays other requests.

        vLLM's 2048 take a small base seconds on two cores; see docs/performance.md. With drafted
        tokens, as many sequences at once as such a step has room for.
        """
        if self.given.get("enable_chunked_prefill") is False:  # a prompt must fit a step then
            return {}
        each = self.speculation.rows if self.speculation else 1
        least = each * (_whole(self.given, "max_num_seqs") if "max_num_seqs" in self.given else 1)
        per_step = min(_VLLM_STEP_TOKENS, _STEP_TOKENS_PER_CORE * max(2, self._cores))
        chosen = {"max_num_batched_tokens": max(least, per_step)}
        if self.speculation:
            step = _whole({**chosen, **self.given}, "max_num_batched_tokens")
            chosen["max_num_seqs"] = max(1, min(_VLLM_SEQUENCES, step // each))
        return chosen

    def _check_speculation(self, merged: Mapping[str, Any]) -> None:
        """vLLM accepts adapters with drafts if a step has room for the drafts of all sequences."""
        if self.speculation is None:
            return
        self.notes.append(("speculation", str(self.speculation)))
        if self.on_cpu:
            check_on_cpu(self.speculation)
        names = ("max_num_batched_tokens", "max_num_seqs")
        if not all(name in merged for name in names):
            return
        step, sequences = (_whole(merged, name) for name in names)
        needed = sequences * self.speculation.rows
        if step < needed:
            raise EngineOptionInvalid(
                f"engine.max_num_batched_tokens: {step} is below {needed}, which {sequences} "
                f"sequences (max_num_seqs) with {self.speculation.tokens} drafted tokens each "
                "need; raise it, or lower max_num_seqs or num_speculative_tokens"
            )

    def _room(self) -> tuple[int, str]:
        """The bytes that each engine may use, and of what. Raises GroupImpossible: too few GPUs."""
        if self.on_cpu:
            part = "" if self.engines == 1 else "each engine's part of "
            return self.machine.memory_bytes // self.engines, f"{part}this machine's memory"
        share = float(self.given.get("gpu_memory_utilization", 0.9))
        gpus, found = gpus_of(self.given), self.machine.gpus
        if len(found) < gpus:
            raise GroupImpossible(f"{gpus} GPUs are asked for, {len(found)} found")
        each = gpus // self.engines
        least = min(
            sum(gpu.memory_bytes for gpu in found[at : at + each]) for at in range(0, gpus, each)
        )
        part = "" if self.engines == 1 else "each engine's "
        return int(least * share), f"{share:.0%} of {part}GPU memory"

    def _dtype(self) -> tuple[str, str]:
        """The dtype, and why this one."""
        own, asked = _own_dtype(self.config), str(self.given.get("dtype", "auto"))
        needed = cpu_dtype(self.config) if self.on_cpu else None
        if needed is not None:
            dtype, part = needed
            if asked not in ("auto", dtype):
                raise EngineOptionInvalid(
                    f"engine.dtype: {asked} is set, but vLLM computes the {part} of this base only "
                    f"in {dtype} on a CPU; remove the option"
                )
            return dtype, f"on a CPU {part} are computed only in this"
        if asked != "auto":
            return asked, "as configured"
        if not self.on_cpu:
            return ("bfloat16" if own == "float32" else own), "the base's own"
        if own != "float32" and not self.machine.has_fast_bfloat16:
            why = "this CPU has no bfloat16 instructions; float32 is several times faster"
            return "float32", why
        return "float32", "exact"

    def _rank(self) -> int:
        largest = max((adapter.rank for adapter in self.adapters), default=0)
        if "max_lora_rank" not in self.given:
            return max(rung(largest), _LEAST_RANK)
        asked = _whole(self.given, "max_lora_rank")
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

    def _slots(self) -> int:
        if "max_loras" in self.given:
            return _whole(self.given, "max_loras")
        return max(1, min(len(self.adapters), _MOST_SLOTS[self.build.device]))

    def _host_adapters(self, slots: int, host_bytes: int, room: int) -> int:
        """How many adapters the engine holds in host memory: two whole groups if they fit.

        Others are read again from the store when they are next requested.
        """
        if "max_cpu_loras" in self.given:
            return _whole(self.given, "max_cpu_loras")
        wanted = max(slots + 1, 2 * len(self.adapters), 8)
        fit = int(room * _HOST_SHARE) // host_bytes if host_bytes else wanted
        return max(slots, min(wanted, fit))

    def _slot_bytes(self, rank: int) -> int:
        """One slot: lora_A [rank, in] and lora_B [out, rank] of every module vLLM can adapt."""
        adapted = (shape for name, shape in self.shapes.items() if shape and "embed" not in name)
        return rank * self.width * sum(map(sum, adapted))

    def _host_bytes(self, slot_bytes: int) -> int:
        """What one adapter takes of host memory, where it has its own rank and modules.

        Twice the group's largest, as the next group's may be larger; at most a full slot.
        """
        largest = max((adapter.bytes for adapter in self.adapters), default=slot_bytes)
        return min(slot_bytes, 2 * largest * self.width // _DTYPE_BYTES["float16"])

    def _weight_bytes(self, base: Path, config: Mapping[str, Any]) -> int:
        stored = sum(file.stat().st_size for file in base.glob("*.safetensors"))
        if "quantization_config" in config:
            return stored
        return stored * self.width // _DTYPE_BYTES.get(_own_dtype(config), 2)

    def _cpu_cache_bytes(self) -> int:
        """The KV cache: 32 sequences of full length, within 1 GiB and a quarter of memory."""
        asked, config = self.given.get("kv_cache_memory_bytes"), self.config
        if isinstance(asked, int):
            return asked
        heads = int(config.get("num_attention_heads", 1))
        head = int(config.get("head_dim") or int(config.get("hidden_size", 0)) // heads)
        pairs = int(config.get("num_hidden_layers", 1))  # of keys and values
        pairs *= int(config.get("num_key_value_heads", heads))
        per_token = 2 * pairs * head * self.width
        length = self.given.get("max_model_len") or config.get("max_position_embeddings", 2048)
        tokens = 32 * int(length) if str(length).isdigit() else 32 * 2048
        return max(GIB, min(per_token * tokens, self.machine.memory_bytes // 4))

    def _rows(self, rank: int, slots: int, host: int) -> tuple[tuple[str, str], ...]:
        build, machine = self.build, self.machine
        where = machine.cpu if self.on_cpu or not machine.gpus else machine.gpus[0].name
        ranks = sorted({adapter.rank for adapter in self.adapters})
        spread = ", ".join(map(str, ranks)) if ranks else "none"
        adapters = (
            f"{len(self.adapters)} of rank {spread}; {slots} slots of rank {rank}, {host} in host "
            "memory"
        )
        return (
            ("engine", f"{build.distribution} {build.version} on {where} ({machine.cores} cores)"),
            ("base", self.base.name),
            *self._engines_row(),
            ("dtype", f"{self.dtype} ({self.why})"),
            ("adapters", adapters),
        )

    def _engines_row(self) -> list[tuple[str, str]]:
        if self.engines == 1:
            return []
        each = gpus_of(self.given) // self.engines
        where = f"{self._cores} cores" if self.on_cpu else f"{each} GPU{'s' if each > 1 else ''}"
        return [("engines", f"{self.engines} on {where} each, with the base and all adapters each")]


@dataclass(frozen=True, slots=True)
class Room:
    """Whether there is room for both, with the arithmetic in a sentence."""

    enough: bool
    text: str


def headroom(held: int, coming: EnginePlan, machine: Machine) -> Room:
    """On a CPU from the memory free now, on GPUs from what the old engine's `held` bytes leave."""
    need = coming.memory_bytes
    if coming.device == "cpu":
        free, place = machine.available_bytes, "free memory"
    else:
        total = sum(gpu.memory_bytes for gpu in machine.gpus[: gpus_of(coming.options)])
        free, place = total - held, "GPU memory that the old engine leaves"
    sizes = f"{need / GIB:.1f} GiB of {max(0, free) / GIB:.1f} GiB {place}"
    if need <= free:
        return Room(True, f"the new engine starts next to the old one: it needs {sizes}")
    return Room(
        False,
        f"the old engine is stopped before the new one starts, which needs {sizes}; requests get "
        "503 NotReady meanwhile",
    )


def engines_of(options: Mapping[str, Any]) -> int:
    """How many engines there are behind one server, each with the base and all adapters.

    Raises EngineOptionInvalid for what would place some of them elsewhere.
    """
    for name in options:
        if name.startswith("data_parallel_") and name != _ENGINES:
            raise EngineOptionInvalid(
                f"engine.{name}: Stacked has vLLM start the engines of this machine alone; set "
                f"{_ENGINES}, and for several machines see docs/fleet.md"
            )
    return _whole(options, _ENGINES) if _ENGINES in options else 1


def gpus_of(options: Mapping[str, Any]) -> int:
    """How many GPUs these options take."""
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", _ENGINES)
    return math.prod(_whole(options, name) for name in sizes if name in options)


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


def _own_dtype(config: Mapping[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def _whole(given: Mapping[str, Any], name: str) -> int:
    try:
        number = int(given[name])
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise EngineOptionInvalid(f"engine.{name}: {given[name]!r} is not a whole number above 0")
    return number


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


def _memory_row(need: Sequence[tuple[str, int]], room: int, place: str) -> tuple[str, str]:
    terms = " + ".join(f"{_human(size)} {label}" for label, size in need)
    return "memory", f"{terms}, of {_human(room)} ({place})"


def _human(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 1024**2:.0f} MiB"
