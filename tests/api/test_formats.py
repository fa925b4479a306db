"""Adapters as trainers write them: the answers are PEFT's, on the engine that serves the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests import tiny
from tests.conftest import PROMPT, TinyModels, complete

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft"),
]

WEIGHTS = "adapter_model.safetensors"
Build = Callable[[Path, Path], Path]


def with_embeddings(base: Path, path: Path) -> Path:
    """PEFT's default: both tables of the base stand beside the adapter of them."""
    from safetensors import safe_open

    targets = [*tiny.ATTENTION, "embed_tokens", "lm_head"]
    tiny.build_adapter(path, base, 71, target_modules=targets, save_embedding_layers="auto")
    with safe_open(path / WEIGHTS, "numpy") as file:
        assert sum(name.endswith("base_layer.weight") for name in file.keys()) == 2  # noqa: SIM118
    return path


def with_expressions(base: Path, path: Path) -> Path:
    """More patterns than the engine looks through, expressions first."""
    unused = {f"layers.{layer}.self_attn.v_proj": 1 for layer in range(100, 200)}
    ranks = {r".*\.0\.self_attn\.(?!k)[qkv]_proj": 3, **unused, "o_proj": 5}
    alphas = {r"(model\.layers\.\d+\.)?self_attn\.[qo]_proj": 40, **unused}
    return tiny.build_adapter(path, base, 72, rank_pattern=ranks, alpha_pattern=alphas)


def with_names(base: Path, path: Path) -> Path:
    """PEFT's own reading of such names is to ignore them, so the answers are the plain file's."""
    from safetensors.numpy import load_file, save_file

    tiny.build_adapter(path, base, 73, alpha_pattern={"layers.1.self_attn.q_proj": 3})
    for file in sorted(path.iterdir()):
        (path / "wrapped").mkdir(exist_ok=True)
        (path / "wrapped" / file.name).write_bytes(file.read_bytes())
    tensors = {
        name.replace("layers.1.", "layers.1._checkpoint_wrapped_module.")
        .replace(".weight", ".default.weight")
        .replace("base_model.", "_orig_mod.base_model."): values
        for name, values in load_file(path / WEIGHTS).items()
    }
    save_file(tensors, path / "wrapped" / WEIGHTS)
    return path


@pytest.mark.parametrize(
    ("build", "served"),
    [(with_embeddings, "."), (with_expressions, "."), (with_names, "wrapped")],
)
def test_the_answers_are_peft_s(
    http: httpx.Client, tiny_models: TinyModels, answers: dict[str, str], build: Build, served: str
) -> None:
    base = tiny_models.base
    source = build(base, base.parent / f"format-{build.__name__}")
    loaded = http.post("/models/format", json={"source": str(source / served)})
    assert loaded.status_code == 200, loaded.text
    try:
        text = complete(http, "format")
    finally:
        assert http.delete("/models/format").status_code == 200
    assert text == by_peft(base, source)
    assert text not in answers.values()


def by_peft(base: Path, adapter: Path) -> str:
    """The greedy answer of `complete`, from PEFT."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    (ids,) = tiny.greedy(base, [tokenizer(PROMPT).input_ids], 12, adapter)
    text: str = tokenizer.decode(ids)
    return text
