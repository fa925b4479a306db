"""The adapters of one vLLM worker, through vLLM's own managers: read, built, registered, activated.

Here are vLLM's methods called, and slots chosen; what a tensor means is left to vLLM, whose own
code does every check and every copy.

Relies on:
- the worker's LoRA manager is an ``LRUCacheWorkerLoRAManager`` with ``_load_adapter``, and
  ``vllm.lora.lora_model`` reads for it by ``safetensors.safe_open``, ``keys`` and ``get_tensor``;
- ``lora_config.lora_dtype`` is what it converts to, and ``tensor.to`` and ``pin_memory`` return
  a tensor unchanged that already is as requested;
- ``LoRALayerWeights.optimize`` multiplies once, however often it is called;
- the adapter manager's ``_add_adapter`` writes ``_registered_adapters`` and nothing else, and
  ``activate_adapter`` writes ``_active_adapters``, ``lora_index_to_id`` and the slot of every one
  of ``modules``; every activation calls it on the manager;
- ``_last_mapping.prompt_mapping`` holds the adapters of the last step, 0 for the base.
"""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stacked.engine.cpu_affinity import Pauses
from stacked.engine.tensors import read_tensors

# LoRA modules that vLLM's loader makes in one part: a few milliseconds of Python. 210 in one go
# held up a step for 82 ms (docs/live-update.md).
_MODULES = 24


class Dropped(Exception):
    """Raised inside a reading thread whose adapter was discarded meanwhile."""


@dataclass
class Job:
    """One adapter being staged. `state` is "reading", "building", then "ready" or "failed"."""

    number: int
    name: str
    path: str
    state: str = "reading"
    reason: str = ""
    tensors: dict[str, Any] | None = None
    work: Iterator[None] | None = None
    model: Any = None
    dropped: bool = False
    urgent: bool = False
    pauses: Pauses = field(default_factory=Pauses)

    def pause(self) -> None:
        """Called between chunks, in the reading thread. Raises Dropped."""
        if self.dropped:
            raise Dropped
        if not self.urgent:
            self.pauses()


@dataclass
class Fill:
    """An adapter that is being copied into a slot: `left` are the modules still to be written."""

    number: int
    slot: int
    left: list[str] = field(default_factory=list)


class VllmLoras:
    """The adapters of one worker, in vLLM's own managers. All but `read` runs in the loop."""

    def __init__(self, lora_manager: Any, step_aside: Callable[[], None]) -> None:
        self._loader = lora_manager
        self._step_aside = step_aside
        self._manager = lora_manager._adapter_manager
        self._fill: Fill | None = None
        self._freeing: queue.SimpleQueue[list[Any]] | None = None
        # vLLM activates what a batch needs through this attribute, and may take the slot being
        # filled.
        self._manager.activate_adapter = self._activate_now

    def read(self, job: Job) -> None:
        """Read an adapter's tensors, in the dtype and memory that vLLM has them in; in a thread.

        Raises OSError, ValueError, Dropped.
        """
        from vllm.lora import lora_model

        job.tensors = read_tensors(
            Path(job.path) / "adapter_model.safetensors",
            self._loader.lora_config.lora_dtype,
            pin=bool(getattr(lora_model, "PIN_MEMORY", False)),
            pause=job.pause,
        )

    def build(self, job: Job) -> Iterator[None]:
        """Make a model of what was read, a part for each `next`. Raises what vLLM raises."""
        from vllm.lora.request import LoRARequest

        request = LoRARequest(lora_name=job.name, lora_int_id=job.number, lora_path=job.path)
        tensors = job.tensors or {}
        model: Any = None
        for takes in self._slices(job):
            with _read_already(tensors, takes):
                part = self._loader._load_adapter(request)
            model = model or part
            model.loras.update(part.loras)
            yield
        job.tensors = None
        if not getattr(self._manager, "_is_moe", False):  # experts are scaled when packed
            for weights in model.loras.values():
                weights.optimize()
                yield
        # The rest of vLLM's adding, with a manager whose register is our own dict.
        stand_in = copy.copy(self._manager)
        stand_in._registered_adapters = {}
        stand_in._add_adapter(model)
        job.model = stand_in._registered_adapters[job.number]
        self._check_applied(job.model)

    def _check_applied(self, model: Any) -> None:
        """Refuse a model with modules that no layer takes, which vLLM would ignore.

        The checks before a load explain it better; this one misses nothing. Raises ValueError.
        """
        left = {*model.loras}.difference(self._manager.modules)
        names = getattr(self._manager, "_get_text_lora_names", None)
        if left and names is not None:  # from vLLM 0.33 on, see `adaptable`
            left.difference_update(*map(names, self._manager.modules))
        if left:
            raise ValueError(f"no layer of the engine takes {', '.join(sorted(left)[:5])}")

    def _slices(self, job: Job) -> Iterator[Callable[[str], bool]]:
        """The modules whose tensors each part of a loading takes, so that no part is long.

        One part if no request waits, or if tensors other than LoRA's may belong together.
        """
        names = list(job.tensors or {})
        modules = list(dict.fromkeys(name.partition(".lora_")[0] for name in names))
        whole = job.urgent or getattr(self._manager, "_is_moe", False)
        if whole or not all(".lora_" in name for name in names) or len(modules) <= _MODULES:
            yield lambda name: True
            return
        for at in range(0, len(modules), _MODULES):
            yield partial(_is_of, frozenset(modules[at : at + _MODULES]))

    def holds(self, number: int) -> bool:
        return number in self._manager._registered_adapters

    def register(self, model: Any) -> None:
        """Register a model with vLLM, in place of the least recently used if memory is full.

        Adapters of the last step stay. Raises RuntimeError if those fill it.
        """
        manager = self._manager
        if len(manager) >= manager.capacity:
            self.remove(self._oldest_idle())
        manager._registered_adapters[model.id] = model

    def _oldest_idle(self) -> int:
        register = self._manager._registered_adapters
        last = self._manager._last_mapping
        busy = set(last.prompt_mapping) if last is not None else set()
        for number in register.order:
            if number not in busy and number not in register.pinned_items:
                return int(number)
        raise RuntimeError(
            f"all {len(register)} adapters that host memory may hold are in use; "
            "raise engine.max_cpu_loras"
        )

    def activate(self, number: int, seconds: float) -> str:
        """Copy a registered adapter into a free slot for about `seconds`.

        Returns "active" when complete, "more" to be called again, "full" if no slot is free.
        """
        manager = self._manager
        if number in manager._active_adapters:
            return "active"
        if number not in manager._registered_adapters:
            raise RuntimeError(f"adapter {number} is not in host memory")
        if self._fill is None or self._fill.number != number:
            free = [at for at, held in enumerate(manager.lora_index_to_id) if held is None]
            if not free:
                return "full"
            self._fill = Fill(number, free[0], list(manager.modules))
        return "active" if self._advance(self._fill, seconds) else "more"

    def remove(self, number: int) -> bool:
        """As vLLM's, but a thread frees the memory, which takes as long as a copy."""
        if self._fill is not None and self._fill.number == number:
            self._fill = None
        last = [self._manager._registered_adapters.get(number)]
        removed = bool(self._manager.remove_adapter(number))
        self.free(last)
        return removed

    def free(self, last: list[Any]) -> None:
        """Empty a list that holds the last references to models, in a thread, one after the other.

        While the system takes memory back, every allocation waits: so not all of it at once.
        """
        if self._freeing is None:
            self._freeing = queue.SimpleQueue()
            work = partial(_free_all, self._freeing, self._step_aside)
            threading.Thread(target=work, name="stacked-free", daemon=True).start()
        self._freeing.put(last)

    def resident(self) -> tuple[list[int], list[int]]:
        """The adapters in host memory, and the one in each slot, 0 for none."""
        slots = [number or 0 for number in self._manager.lora_index_to_id]
        return sorted(self._manager._registered_adapters), slots

    def _advance(self, fill: Fill, seconds: float) -> bool:
        """Write modules for about `seconds`, at least one; True when the adapter is active."""
        manager, until = self._manager, time.perf_counter() + seconds
        layout: list[int | None] = [-1] * len(manager.lora_index_to_id)
        while fill.left:
            # vLLM's own activation, on a manager that has one module and one free slot.
            module = fill.left[-1]
            stand_in = copy.copy(manager)
            stand_in.modules = {module: manager.modules[module]}
            stand_in.lora_index_to_id = [*layout[: fill.slot], None, *layout[fill.slot + 1 :]]
            stand_in._active_adapters = type(manager._active_adapters)(1, _nothing)
            with _writing(manager.modules[module], fill.slot):
                type(manager).activate_adapter(stand_in, fill.number)
            fill.left.pop()
            if time.perf_counter() >= until:
                break
        if fill.left:
            return False
        manager._active_adapters[fill.number] = None
        manager.lora_index_to_id[fill.slot] = fill.number
        self._fill = None
        return True

    def _activate_now(self, number: int) -> bool:
        """vLLM's call before a batch: complete what was begun, or activate from scratch."""
        fill, manager = self._fill, self._manager
        if fill is not None and fill.number == number:
            self._advance(fill, float("inf"))
        try:
            return bool(type(manager).activate_adapter(manager, number))
        finally:
            if fill is not None and manager.lora_index_to_id[fill.slot] is not None:
                self._fill = None  # its slot was taken, and with it what was written there


def _writing(module: Any, slot: int) -> AbstractContextManager[None]:
    """Tell our kernel, if it is in use, which slot is written, so it examines only that one."""
    writing = getattr(getattr(module, "punica_wrapper", None), "writing", None)
    return nullcontext() if writing is None else writing(module.lora_b_stacked, slot)


def _free_all(lists: queue.SimpleQueue[list[Any]], step_aside: Callable[[], None]) -> None:
    step_aside()
    while True:
        last = lists.get()
        began = time.perf_counter()
        last.clear()
        del last
        time.sleep(2 * (time.perf_counter() - began))


@contextmanager
def _read_already(ready: dict[str, Any], takes: Callable[[str], bool]) -> Iterator[None]:
    """Let vLLM's loader, which runs only in the loop, find LoRA tensors that were read before.

    It sees only those tensors of the file that `takes` names.
    """
    from vllm.lora import lora_model

    real = lora_model.safetensors

    def safe_open(*args: Any, **kwargs: Any) -> _Opened:
        return _Opened(partial(real.safe_open, *args, **kwargs), ready, takes)

    lora_model.safetensors = SimpleNamespace(safe_open=safe_open)
    try:
        yield
    finally:
        lora_model.safetensors = real


class _Opened:
    """A safetensors file whose tensors' names are known; opened for those that were not read."""

    def __init__(
        self, open_file: Callable[[], Any], ready: dict[str, Any], takes: Callable[[str], bool]
    ) -> None:
        self._open_file = open_file
        self._ready = ready
        self._takes = takes
        self._files = ExitStack()
        self._file: Any = None

    def keys(self) -> list[str]:
        return [name for name in self._ready if self._takes(name)]

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.close()

    def get_tensor(self, name: str) -> Any:
        # Other tensors keep their dtype: vLLM converts only LoRA's.
        found = self._ready.get(name) if ".lora_" in name else None
        if found is not None:
            return found
        self._file = self._file or self._files.enter_context(self._open_file())
        return self._file.get_tensor(name)


def _is_of(modules: Collection[str], name: str) -> bool:
    """Whether a tensor of this name belongs to one of these modules."""
    return name.partition(".lora_")[0] in modules


def _nothing(number: int) -> None:
    return None
