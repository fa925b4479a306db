"""Staging: what is read aside, when vLLM hears of it, and which slot it may have.

Threads and order are tried on a reader that does what a test tells it; slots on vLLM's own manager
over modules that write down what they are given; equality on the lab's real engine.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stacked.engine import calls, tensors
from stacked.engine.loras import Job, VllmLoras, _Opened
from stacked.engine.staging import Stager, StagingWorker
from stacked.engine.tensors import read_tensors
from tests import tiny
from tests.engine import staging_run
from tests.live.lab import Lab

pytest.importorskip("vllm")


class Reader:
    """Adapters of a worker as a dict. Reading and building `path` do what a test puts there."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.reads: dict[str, Callable[[Job], None]] = {}
        self.builds: dict[str, Callable[[Job], Iterator[None]]] = {}
        self.full = False
        self.read_count = 0

    def read(self, job: Job) -> None:
        self.read_count += 1
        self.reads.get(job.path, lambda job: None)(job)

    def build(self, job: Job) -> Iterator[None]:
        yield from self.builds.get(job.path, lambda job: iter(()))(job)
        job.model = SimpleNamespace(id=job.number)

    def holds(self, number: int) -> bool:
        return number in self.held

    def free(self, last: list[Any]) -> None:
        last.clear()

    def register(self, model: Any) -> None:
        if self.full:
            raise RuntimeError("host memory is full")
        self.held[model.id] = model


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def stager(reader: Reader) -> Stager:
    return Stager(reader, lambda: None)


def wait_for(stager: Stager, number: int) -> tuple[str, str]:
    """The state of an adapter when it has been read and the loop has built it."""
    until = time.monotonic() + 20
    while stager.state(number)[0] == "reading":
        assert time.monotonic() < until
        time.sleep(0.002)
    return stager.advance([number], 60.0)[0]


def test_what_is_staged_is_unknown_to_vllm_until_it_is_adopted(
    stager: Stager, reader: Reader
) -> None:
    stager.stage(1, "one", "path")
    assert wait_for(stager, 1) == ("ready", "")
    assert (reader.held, stager.staged()) == ({}, [1])
    stager.adopt(1)
    assert (list(reader.held), stager.staged(), stager.state(1)[0]) == ([1], [], "adopted")


def test_staging_and_adopting_twice_is_once(stager: Stager, reader: Reader) -> None:
    for _ in range(2):
        stager.stage(1, "one", "path")
    wait_for(stager, 1)
    stager.adopt(1)
    first = reader.held[1]
    stager.adopt(1)
    stager.stage(1, "one", "path")
    assert reader.held == {1: first}
    assert (reader.read_count, stager.staged()) == (1, [])


@pytest.mark.parametrize("where", ["thread", "loop"])
def test_failure_is_told_with_its_first_line_and_cannot_be_adopted(
    stager: Stager, reader: Reader, where: str
) -> None:
    def fail(job: Job) -> Any:
        raise ValueError("\n no tensors here \nTraceback …")

    (reader.reads if where == "thread" else reader.builds)["bad"] = fail
    stager.stage(1, "one", "bad")
    assert wait_for(stager, 1) == ("failed", "no tensors here")
    with pytest.raises(RuntimeError, match="failed no tensors here"):
        stager.adopt(1)
    stager.discard(1)
    assert (stager.state(1), reader.held) == (("absent", ""), {})


def test_what_was_never_staged_cannot_be_adopted(stager: Stager) -> None:
    with pytest.raises(RuntimeError, match="absent"):
        stager.adopt(1)


def test_reading_that_never_ends_holds_up_nobody_and_its_late_result_is_dropped(
    stager: Stager, reader: Reader
) -> None:
    go_on = threading.Event()

    def hang(job: Job) -> None:
        go_on.wait(20)

    reader.reads["hangs"] = hang
    stager.stage(1, "one", "hangs")
    stager.stage(2, "two", "path")
    assert wait_for(stager, 2)[0] == "ready"
    assert stager.state(1)[0] == "reading"
    with pytest.raises(RuntimeError, match="reading"):
        stager.adopt(1)
    stager.discard(1)
    go_on.set()
    assert wait_for(stager, 1)[0] == "absent"
    assert stager.staged() == [2]


def test_what_the_loop_must_do_is_done_in_parts(stager: Stager, reader: Reader) -> None:
    reader.builds["long"] = lambda job: iter([None] * 3)
    stager.stage(1, "one", "long")
    while stager.state(1)[0] == "reading":
        time.sleep(0.001)
    told = [stager.advance([1], 0.0)[0][0] for _ in range(4)]
    assert told == ["building", "building", "building", "ready"]
    assert stager.advance([1], 0.0)[0][0] == "ready"


def test_discarding_ends_a_reading_at_its_next_tensor(stager: Stager, reader: Reader) -> None:
    read_so_far: list[int] = []

    def read(job: Job) -> None:
        for number in range(100_000):
            job.pause()
            read_so_far.append(number)

    reader.reads["long"] = read
    stager.stage(1, "one", "long")
    while not read_so_far:
        time.sleep(0.001)
    stager.discard(1)
    stager.discard(1)
    assert wait_for(stager, 1)[0] == "absent"
    assert len(read_so_far) < 100_000


def test_adapter_that_finds_no_room_stays_staged(stager: Stager, reader: Reader) -> None:
    stager.stage(1, "one", "path")
    wait_for(stager, 1)
    reader.full = True
    with pytest.raises(RuntimeError, match="full"):
        stager.adopt(1)
    assert stager.state(1)[0] == "ready"
    reader.full = False
    stager.adopt(1)
    assert list(reader.held) == [1]


def test_a_start_loads_in_order_and_says_which_one_failed(stager: Stager, reader: Reader) -> None:
    def fail(job: Job) -> None:
        raise ValueError("cut short")

    stager.load([(number, f"name-{number}", "path") for number in range(1, 6)])
    assert list(reader.held) == [1, 2, 3, 4, 5]
    reader.reads["bad"] = fail
    with pytest.raises(RuntimeError, match="name-7: cut short"):
        stager.load([(6, "name-6", "path"), (7, "name-7", "bad"), (8, "name-8", "path")])
    assert list(reader.held) == [1, 2, 3, 4, 5, 6]
    stager.load([(6, "name-6", "path"), (8, "name-8", "path")])
    assert list(reader.held) == [1, 2, 3, 4, 5, 6, 8]
    assert stager.staged() == []


def test_the_file_is_opened_only_for_what_was_not_read() -> None:
    opened: list[str] = []

    @contextmanager
    def open_file() -> Iterator[Any]:
        opened.append("opened")
        yield SimpleNamespace(get_tensor=lambda name: f"{name} of the file")
        opened.append("closed")

    ready = {"q.lora_A.weight": "a", "q.lora_B.weight": None, "embedding": "converted"}
    with _Opened(open_file, ready, lambda name: True) as file:
        assert (file.get_tensor("q.lora_A.weight"), opened) == ("a", [])
        assert file.get_tensor("embedding") == "embedding of the file"
        assert file.get_tensor("q.lora_B.weight") == "q.lora_B.weight of the file"
    assert opened == ["opened", "closed"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_are_read_as_torch_converts_them(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file

    monkeypatch.setattr(tensors, "_CHUNK_BYTES", 1024)
    made = torch.Generator().manual_seed(1)
    given = {
        f"{kind}.{size}": torch.randn(size, 3, generator=made).to(getattr(torch, kind))
        for kind in ("bfloat16", "float32", "float16")
        for size in (1, 64, 333)
    }
    save_file(given | {"count": torch.tensor([3])}, tmp_path / "x", {"format": "pt"})
    wanted = getattr(torch, dtype)
    found = read_tensors(tmp_path / "x", wanted, pin=False, pause=lambda: None)
    assert found.keys() == {*given, "count"}
    assert found["count"] is None
    for name, tensor in given.items():
        assert torch.equal(found[name], tensor.to(wanted)), name
        assert found[name].dtype == wanted


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_file_that_is_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.ones(10, 10)}, tmp_path / "x")
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:keep])
    with pytest.raises(ValueError, match="ends early"):
        read_tensors(tmp_path / "x", torch.float32, pin=False, pause=lambda: None)


class Module:
    """A layer that writes down whose weights each of its slots was given."""

    def __init__(self, slots: int) -> None:
        self.slots: list[Any] = [None] * slots
        self.writes = 0

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        assert lora_a == lora_b
        self.slots[index] = lora_a
        self.writes += 1

    def reset_lora(self, index: int) -> None:
        self.slots[index] = "zeros"
        self.writes += 1


class Model:
    """An adapter for some modules; its weights are its number."""

    def __init__(self, number: int, modules: str) -> None:
        self.id = number
        self.modules = modules

    def get_lora(self, module: str) -> Any:
        weights = SimpleNamespace(lora_a=self.id, lora_b=self.id)
        return weights if module in self.modules else None


def make_manager(slots: int, capacity: int) -> Any:
    """vLLM's own manager, without a model: modules a, b, c and `slots` slots."""
    from vllm.lora.model_manager import AdapterLRUCache, LRUCacheLoRAModelManager

    manager = object.__new__(LRUCacheLoRAModelManager)
    manager.lora_config = SimpleNamespace(max_loras=slots, max_cpu_loras=capacity)
    manager._registered_adapters = AdapterLRUCache(capacity, manager.deactivate_adapter)
    manager._active_adapters = AdapterLRUCache(slots, manager._deactivate_adapter)
    manager.lora_index_to_id = [None] * slots
    manager.modules = {name: Module(slots) for name in "abc"}
    manager.is_pooling_model = False
    manager._last_mapping = None
    return manager


@pytest.fixture
def manager() -> Any:
    return make_manager(slots=2, capacity=3)


@pytest.fixture
def loras(manager: Any) -> VllmLoras:
    return VllmLoras(SimpleNamespace(_adapter_manager=manager), lambda: None)


def in_slot(manager: Any, slot: int) -> list[Any]:
    return [module.slots[slot] for module in manager.modules.values()]


def test_activation_in_parts_is_not_active_before_the_last(loras: VllmLoras, manager: Any) -> None:
    loras.register(Model(1, "ac"))
    told = []
    while not told or told[-1] == "more":
        assert manager.lora_index_to_id == [None, None]
        assert 1 not in manager._active_adapters
        told.append(loras.activate(1, 0.0))
    assert told == ["more", "more", "active"]
    assert in_slot(manager, 0) == [1, "zeros", 1]
    assert manager.lora_index_to_id == [1, None]
    assert loras.activate(1, 0.0) == "active"
    assert [module.writes for module in manager.modules.values()] == [1, 1, 1]


def test_activation_takes_free_slots_only(loras: VllmLoras, manager: Any) -> None:
    for number in (1, 2, 3):
        loras.register(Model(number, "abc"))
    assert [loras.activate(number, 1.0) for number in (1, 2, 3)] == ["active", "active", "full"]
    assert manager.lora_index_to_id == [1, 2]
    manager.activate_adapter(3)  # vLLM's own, for a request: the oldest makes room
    assert manager.lora_index_to_id == [3, 2]
    assert (in_slot(manager, 0), in_slot(manager, 1)) == ([3, 3, 3], [2, 2, 2])


def test_slot_that_vllm_takes_midway_is_given_up(loras: VllmLoras, manager: Any) -> None:
    for number in (1, 2, 3):
        loras.register(Model(number, "abc"))
    assert loras.activate(1, 0.0) == "more"
    manager.activate_adapter(2)
    assert in_slot(manager, 0) == [2, 2, 2]
    assert manager.remove_adapter(2)
    while loras.activate(1, 0.0) == "more":
        pass
    assert manager.lora_index_to_id == [1, None]
    assert in_slot(manager, 0) == [1, 1, 1]


def test_request_for_a_half_activated_adapter_completes_it(loras: VllmLoras, manager: Any) -> None:
    loras.register(Model(1, "abc"))
    assert loras.activate(1, 0.0) == "more"
    manager.activate_adapter(1)
    assert in_slot(manager, 0) == [1, 1, 1]
    assert manager.lora_index_to_id == [1, None]
    assert [module.writes for module in manager.modules.values()] == [1, 1, 1]


def test_adapter_removed_midway_leaves_its_slot_free(loras: VllmLoras, manager: Any) -> None:
    loras.register(Model(1, "abc"))
    assert loras.activate(1, 0.0) == "more"
    assert loras.remove(1)
    assert not loras.remove(1)
    with pytest.raises(RuntimeError, match="not in host memory"):
        loras.activate(1, 0.0)
    loras.register(Model(2, "b"))
    while loras.activate(2, 0.0) == "more":
        pass
    assert in_slot(manager, 0) == ["zeros", 2, "zeros"]
    assert loras.resident() == ([2], [2, 0])


def test_full_host_memory_gives_up_the_oldest_that_no_request_uses(
    loras: VllmLoras, manager: Any
) -> None:
    for number in (1, 2, 3):
        loras.register(Model(number, "abc"))
        loras.activate(number, 1.0)
    manager._last_mapping = SimpleNamespace(prompt_mapping=(0, 1, 1))
    loras.register(Model(4, "abc"))
    assert loras.resident() == ([1, 3, 4], [1, 0])
    manager._registered_adapters.pin(3)
    manager._last_mapping = SimpleNamespace(prompt_mapping=(0, 1, 4))
    with pytest.raises(RuntimeError, match="all 3 adapters"):
        loras.register(Model(5, "abc"))
    assert loras.resident() == ([1, 3, 4], [1, 0])


def test_the_extension_clashes_with_nothing_of_vllms_worker() -> None:
    names = [name for name in vars(StagingWorker) if not name.startswith("__")]
    assert names
    assert all(name.startswith("stacked_") for name in names)


def test_importing_the_extension_imports_neither_vllm_nor_torch() -> None:
    code = "import sys, stacked.engine.staging; print({'vllm', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.fixture(scope="module")
def report(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        # One module per call, so that parts are many.
        patch.setattr(calls, "PART_SECONDS", (0.0, 0.0))
        return staging_run.report(lab, tmp_path_factory.mktemp("staging"))


@pytest.mark.engine
def test_staged_adapters_answer_as_those_that_vllm_loads(report: dict[str, Any]) -> None:
    want = report["add_lora"]
    assert len({tuple(answer) for answer in want.values()}) == len(want) >= 6
    assert report["staged, alone"] == want
    assert report["staged, at once"] == want


@pytest.mark.engine
def test_a_probe_without_weights_tells_what_a_running_engine_adapts(
    report: dict[str, Any],
) -> None:
    told = report["adaptable"]
    assert told == report["probed"]
    assert told["architecture"] == "LlamaForCausalLM"
    assert {name.rpartition(".")[2] for name in told["modules"]} == {
        *tiny.ALL_LINEAR,
        "lm_head",
        "embed_tokens",
    }


@pytest.mark.engine
def test_streams_are_token_for_token_the_same_while_adapters_come_and_go(
    report: dict[str, Any],
) -> None:
    assert len(report["streams"]) >= 3
    assert report["streams beside staging"] == report["streams"]


@pytest.mark.engine
def test_slots_are_filled_while_they_are_free(report: dict[str, Any]) -> None:
    slots, activated = report["slots"], report["activated"]
    assert activated == [True] * slots + [False] * (len(activated) - slots)
    assert report["resident"]["staged"] == []
    assert len(report["resident"]["host"]) == len(activated)
    assert None not in report["resident"]["slots"]


@pytest.mark.engine
def test_bad_adapters_fail_with_the_reason_and_leave_nothing(report: dict[str, Any]) -> None:
    assert "nowhere" in report["failures"]["missing"]
    assert report["failures"]["cut"]
    assert report["after failures"] == report["before failures"]


@pytest.mark.engine
def test_removed_and_discarded_adapters_are_gone(report: dict[str, Any]) -> None:
    assert report["discarded"]["staged"] == []
    assert report["removed"]["host"] == []
    assert set(report["removed"]["slots"]) == {None}


@pytest.mark.engine
def test_an_adapter_that_computes_what_is_no_number_reaches_no_other_request(
    report: dict[str, Any],
) -> None:
    """Neither beside it in a batch nor in the blocks of the KV cache that it used before."""
    assert report["huge"] == [[0] * staging_run.TOKENS] * 3  # as logits that are no numbers give
    base = report["add_lora"]["base"]
    assert report["base with and after huge"] == [base] * 7


def test_a_module_that_no_layer_takes_fails_the_load() -> None:
    loras = SimpleNamespace(_manager=SimpleNamespace(modules={"a.qkv_proj": None}))
    check = VllmLoras._check_applied
    check(loras, SimpleNamespace(loras={"a.qkv_proj": None}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no layer .* b\.q_proj"):
        check(loras, SimpleNamespace(loras={"a.qkv_proj": None, "b.q_proj": None}))  # type: ignore[arg-type]
    # From vLLM 0.33 on a layer of a multimodal model has other names as well.
    loras._manager._get_text_lora_names = lambda name: [name.removeprefix("a.")]
    check(loras, SimpleNamespace(loras={"a.qkv_proj": None, "qkv_proj": None}))  # type: ignore[arg-type]


def test_large_adapters_are_made_in_slices_that_keep_modules_whole() -> None:
    modules = [f"model.layers.{at}.q_proj" for at in range(100)]
    names = [f"{module}.lora_{half}.weight" for module in modules for half in "AB"]
    job = Job(1, "one", "/one", tensors=dict.fromkeys(names))
    loras = SimpleNamespace(_manager=SimpleNamespace())
    slices = [
        {name for name in names if takes(name)}
        for takes in VllmLoras._slices(loras, job)  # type: ignore[arg-type]
    ]
    assert len(slices) > 3
    assert sorted(name for each in slices for name in each) == sorted(names)
    for each in slices:
        halves = {name.replace("lora_A", "lora_B") for name in each}
        assert halves <= each
    job.urgent = True
    assert len(list(VllmLoras._slices(loras, job))) == 1  # type: ignore[arg-type]
