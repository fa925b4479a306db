"""Checks the adapter directories as they are shipped, file by file.

Owns what a shipped directory must look like; must not know how it was trained.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"
SHIPPED = ["sql/v1", "sql/v2", "triage/v1", "pirate/v1"]
FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
HIDDEN, KV = 576, 192  # widths of the base's hidden state and of its keys and values
WIDTHS = {"q_proj": (HIDDEN, HIDDEN), "k_proj": (HIDDEN, KV), "v_proj": (HIDDEN, KV),
          "o_proj": (HIDDEN, HIDDEN)}  # fmt: skip


@pytest.fixture(params=SHIPPED)
def shipped(request: pytest.FixtureRequest) -> Path:
    return ADAPTERS / str(request.param)


def config(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text())
    return found


def tensors(directory: Path) -> dict[str, Any]:
    """The header of the safetensors file: tensor names to dtype, shape and offsets."""
    data = (directory / "adapter_model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return header


def test_every_adapter_directory_is_listed_here() -> None:
    found = {str(p.parent.relative_to(ADAPTERS)) for p in ADAPTERS.glob("**/adapter_config.json")}
    assert found == set(SHIPPED)


def test_directory_holds_the_three_files_and_no_pickle(shipped: Path) -> None:
    assert {p.name for p in shipped.iterdir()} == FILES
    assert all(p.is_file() and not p.is_symlink() for p in shipped.iterdir())


def test_directory_is_under_four_megabytes(shipped: Path) -> None:
    assert sum(p.stat().st_size for p in shipped.iterdir()) < 4_000_000


def test_config_is_plain_lora_on_the_named_base(shipped: Path) -> None:
    fields = config(shipped)
    assert fields["peft_type"] == "LORA"
    assert fields["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert fields["r"] == 8
    assert not fields["modules_to_save"]
    assert not fields["use_dora"]
    assert not fields["use_rslora"]


def test_every_target_has_both_halves_in_bfloat16_and_in_the_base_s_shapes(shipped: Path) -> None:
    fields, header = config(shipped), tensors(shipped)
    rank = fields["r"]
    assert len(header) == 30 * len(fields["target_modules"]) * 2
    for name, tensor in header.items():
        match = re.fullmatch(r".*layers\.\d+\.self_attn\.(\w+)\.lora_([AB])\.weight", name)
        assert match, name
        inside, outside = WIDTHS[match[1]]
        assert tensor["dtype"] == "BF16"
        assert tensor["shape"] == ([rank, inside] if match[2] == "A" else [outside, rank])


def test_card_states_data_licence_time_and_the_scores_of_base_and_adapter(shipped: Path) -> None:
    card = (shipped / "README.md").read_text()
    for needed in ("license: apache-2.0", "Synthetic", "## Limits", "minutes", "| Steps |"):
        assert needed in card
    scores = {
        who: [float(s) for s in re.findall(rf"^\| {who} \|.*\| ([\d.]+) \|$", card, re.MULTILINE)]
        for who in ("base", "this adapter")
    }
    assert scores["base"]
    assert scores["this adapter"]
    assert min(scores["this adapter"]) > max(scores["base"]) + 0.2
