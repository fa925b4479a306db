"""The least time of a run by arithmetic, and the ceilings that it is made of by measuring."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stacked.bench import ceilings, offline
from stacked.bench.ceilings import BaseWeights, Bound, dtype_of, least_seconds, measured_ceilings
from stacked.bench.shapes import build_shape
from stacked.bench.subject import Requested, prepare
from stacked.engine.ceilings import Ceilings
from stacked.errors import EngineStartFailed
from stacked.store import BaseModules
from tests.bench.test_subject import Told
from tests.bench.test_tables import TOLD, cell, offline_settings, run_of

# 1000 weights, 200 of them the head's; 4 bytes each; 8 kB and 1 Mflop a second.
BASE = BaseWeights(weights=1000, head=200)
KNOWN = Ceilings("2 threads", "float32", copied=8_000.0, multiplied=1e6)


def test_a_step_reads_every_weight_once_however_many_rows_it_has() -> None:
    one = least_seconds(BASE, KNOWN, requests=1, batch=1, prompt=0, output=11)
    eight = least_seconds(BASE, KNOWN, requests=8, batch=8, prompt=0, output=11)
    head = 2 * 200 / 1e6
    assert one == pytest.approx(10 * 4000 / 8000 + head)
    assert eight == pytest.approx(10 * 4000 / 8000 + 8 * head)


def test_many_rows_are_bound_by_multiplying() -> None:
    rows = 1000
    seconds = least_seconds(BASE, KNOWN, requests=rows, batch=rows, prompt=0, output=2)
    assert seconds == pytest.approx(rows * 2 * 200 / 1e6 + rows * 2 * 1000 / 1e6)


def test_prompts_are_multiplied_by_all_but_the_head() -> None:
    seconds = least_seconds(BASE, KNOWN, requests=3, batch=1, prompt=50, output=1)
    assert seconds == pytest.approx(3 * (50 * 2 * 800 + 2 * 200) / 1e6)


def test_a_bases_weights_are_counted_without_its_embedding(tmp_path: Path) -> None:
    base = BaseWeights.of(BaseModules.read(build_shape("tiny", tmp_path)))
    layer = 128 * (128 + 64 + 64 + 128) + 3 * 128 * 256
    assert base == BaseWeights(weights=2 * layer + 512 * 128, head=512 * 128)
    tied = BaseWeights.of(BaseModules.read(build_shape("llama-1b", tmp_path)))
    assert tied is not None
    assert tied.head == 128256 * 2048
    assert 1.2e9 < tied.weights < 1.3e9
    assert BaseWeights.of(BaseModules("q", {"model.layers.0.q_proj": None})) is None


def test_auto_is_the_bases_own_dtype(tmp_path: Path) -> None:
    assert dtype_of(build_shape("tiny", tmp_path), "auto") == "float32"
    assert dtype_of(build_shape("llama-1b", tmp_path), None) == "bfloat16"
    assert dtype_of(tmp_path, "float16") == "float16"


def test_ceilings_are_measured_by_a_process_of_their_own() -> None:
    measured = measured_ceilings("float32")
    assert measured.dtype == "float32"
    assert 1e8 < measured.copied < 1e14
    assert 1e8 < measured.multiplied < 1e17


def test_what_cannot_be_measured_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineStartFailed, match=r"ceilings could not be measured.*float33"):
        measured_ceilings("float33")
    monkeypatch.setattr(ceilings, "_SECONDS_TO_MEASURE", 0.01)
    with pytest.raises(EngineStartFailed, match="timed out"):
        measured_ceilings("float32")


def test_a_benchmark_goes_on_without_ceilings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(dtype: str) -> Ceilings:
        raise EngineStartFailed(f"no torch for {dtype}")

    monkeypatch.setattr(offline, "measured_ceilings", fails)
    subject = prepare(Requested("tiny"), 1, tmp_path, tmp_path, Told())
    tell = Told()
    assert offline.bound_of(subject, offline_settings(), tell) is None
    assert tell.notes == ["no ceiling: no torch for float32"]


def test_rows_are_shares_of_the_ceiling() -> None:
    rows = offline_settings().rows
    measured = [run_of(0, "off", rows[0], 2.0), run_of(0, "on", rows[0], 4.0)]
    bound = Bound(KNOWN, seconds=1.0)
    result = offline.offline_result(TOLD, offline_settings(), measured, bound)
    assert [cell(result, row, "of the ceiling") for row in range(2)] == ["0.50", "0.25"]
    assert result.data["bound"]["seconds"] == 1.0
    assert any("2 threads copied (0.0 GB/s)" in note for note in result.notes)
    json.dumps(result.data)
    fast = replace(KNOWN, multiplied=9.89e14, copied=4.8e12)
    notes = offline.offline_result(
        TOLD, offline_settings(), measured, replace(bound, ceilings=fast)
    ).notes
    assert any("(4800.0 GB/s) and multiplied (989 TFLOP/s)" in note for note in notes)
    without = offline.offline_result(TOLD, offline_settings(), measured)
    assert "of the ceiling" not in without.header
