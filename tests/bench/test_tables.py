"""From what was measured to rows, ratios, Markdown and pictures; no engine runs here."""

from __future__ import annotations

import builtins
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from stacked.bench import offline, online, start
from stacked.bench.figures import Spread
from stacked.bench.gaps import gap_figures, gaps_result, read_seconds, wait_figures
from stacked.bench.load import FIGURES, Lengths, Load
from stacked.bench.plot import check_plot, draw
from stacked.bench.report import Bar, Chart, Result, as_json, markdown, with_circumstances, write
from stacked.bench.updates import Update
from stacked.bench.workload import ASSIGNMENTS, Row
from stacked.errors import ParameterInvalid

TOLD = {"base": "tiny", "adapters": 2}
SVG = "{http://www.w3.org/2000/svg}"


def cell(result: Result, row: int, column: str) -> str:
    return result.rows[row][list(result.header).index(column)]


# -- offline --------------------------------------------------------------------------------


def offline_settings(**changes: Any) -> offline.Settings:
    rows = [Row(1), Row(3, "uniform")]
    given: dict[str, Any] = {
        "rows": rows,
        "slots": 2,
        "batch": 4,
        "requests": 8,
        "prompt_tokens": 6,
        "output_tokens": 4,
        "rounds": 2,
    }
    return offline.Settings(**(given | changes))


def run_of(round: int, side: str, row: Row, seconds: float) -> offline.Measured:
    return offline.Measured(round, side, row.name, seconds, 8, 48, 32, 2_000_000_000, 0)


def test_offline_rows_are_ratios_of_lora_off_in_their_own_round() -> None:
    one, three = Row(1), Row(3, "uniform")
    measured = [
        *(run_of(0, "off", row, 1.0) for row in (one, three)),
        run_of(0, "on", one, 1.25),
        run_of(0, "on", three, 2.0),
        # In the second round the machine is half as fast; the ratios are the same.
        *(run_of(1, "off", row, 2.0) for row in (one, three)),
        run_of(1, "on", one, 2.5),
        run_of(1, "on", three, 4.0),
    ]
    result = offline.offline_result(TOLD, offline_settings(), measured)
    assert [row[:2] for row in result.rows] == [
        ["LoRA off", "base"],
        ["Stacked", "1 adapter"],
        ["Stacked", "3 adapters, uniform"],
    ]
    assert [cell(result, row, "of LoRA off") for row in range(3)] == [
        "1",
        "0.80 (0.80 to 0.80)",
        "0.50 (0.50 to 0.50)",
    ]
    assert cell(result, 0, "tokens/s") == "60.0 (40.0 to 80.0)"
    assert cell(result, 0, "generated/s") == "24.0 (16.0 to 32.0)"
    assert cell(result, 1, "peak memory") == "2.00 GB"
    assert result.data["rows"][2]["ratio"]["median"] == 0.5
    assert len(result.data["each"]) == 8
    json.dumps(result.data)


def test_peak_memory_is_the_gpus_where_there_is_one() -> None:
    measured = [offline.Measured(0, "off", "1 adapter", 1.0, 8, 48, 32, 5, 30_000_000_000)]
    settings = offline_settings(rows=[Row(1)])
    assert cell(offline.offline_result(TOLD, settings, measured), 0, "peak memory") == "30.00 GB"


def test_both_sides_are_asked_the_same_and_lora_off_the_base() -> None:
    settings, row = offline_settings(requests=50), Row(3, "uniform")
    on, off = (offline.batch_message(settings, side, row, 1) for side in ("on", "off"))
    assert set(on["assigned"]) == {0, 1, 2}
    assert off["assigned"] == [None] * 50
    assert {**on, "assigned": 0} == {**off, "assigned": 0}
    rows = [Row(k, way) for k in (0, 1, 3, 500) for way in ASSIGNMENTS]
    seeds = {
        offline.batch_message(settings, "on", each, number)["seed"]
        for each in rows
        for number in (-1, 0, 1, 2)
    }
    assert len(seeds) == 4 * len(rows)  # prompts of their own: no prefix cache may help


# -- online ---------------------------------------------------------------------------------


def loaded(round: int, side: str, rate: float, first: float) -> online.Measured:
    figures = dict.fromkeys(FIGURES, 1.0)
    figures |= {"request_throughput": rate, "median_ttft_ms": first}
    return online.Measured(round, side, "16 clients", figures)


def test_online_ratios_pair_the_rounds_whatever_order_they_ran_in() -> None:
    settings = online.Settings([Load(16, 0.0, 64)], Lengths(32, 32), starts=1, rounds=2)
    measured = [
        loaded(0, "stacked", 12.0, 9.0),
        loaded(0, "vllm", 10.0, 10.0),
        loaded(1, "vllm", 5.0, 20.0),
        loaded(1, "stacked", 6.0, 18.0),
    ]
    result = online.online_result(TOLD, settings, measured)
    assert cell(result, 0, "requests/s to the other's") == "1.20 (1.20 to 1.20)"
    assert cell(result, 0, "first token to the other's") == "0.90 (0.90 to 0.90)"
    assert cell(result, 1, "requests/s") == "7.50 (5.00 to 10.00)"
    assert cell(result, 1, "requests/s to the other's") == ""
    assert result.data["rows"][0]["request_throughput_ratio"]["median"] == 1.2


def test_online_without_a_peer_has_no_ratios() -> None:
    settings = online.Settings([Load(16, 0.0, 64)], Lengths(32, 32), 1, 1, peer=False)
    result = online.online_result(TOLD, settings, [loaded(0, "stacked", 12.0, 9.0)])
    assert len(result.rows) == 1
    assert cell(result, 0, "requests/s to the other's") == ""


# -- start ----------------------------------------------------------------------------------


def test_start_is_told_to_the_smallest_group_and_to_vllm() -> None:
    def at(side: str, group: int, state: str, seconds: float) -> start.Measured:
        return start.Measured(0, side, group, state, seconds - 1, seconds)

    measured = [
        at(side, group, state, seconds * (2 if side == "vllm" else 1))
        for state, extra in (("cold", 10), ("warm", 0))
        for side in ("stacked", "vllm")
        for group, seconds in ((1, 20 + extra), (50, 25 + extra))
    ]
    result = start.start_result(TOLD, start.Settings([1, 50], 1), measured)
    assert [list(row) for row in result.rows[:4]] == [
        ["cold", "1", "Stacked", "30.0", "1.00", "0.50"],
        ["cold", "1", "vLLM's server", "60.0", "1.00", ""],
        ["cold", "50", "Stacked", "35.0", "1.17", "0.50"],
        ["cold", "50", "vLLM's server", "70.0", "1.17", ""],
    ]
    assert start.groups_of("1, 50") == [1, 50]
    with pytest.raises(ParameterInvalid):
        start.groups_of("0,1")


# -- gaps -----------------------------------------------------------------------------------


def test_gaps_of_a_load_are_held_against_the_steady_ones_before_it() -> None:
    tokens = [at / 10 for at in range(101)]  # a token every 0.1 s, until 10
    tokens += [10.3, 10.4, 10.5]
    loading = Update(2, requested=10.0, switched=10.35, ended=10.4)
    row = gap_figures([tokens], 0.0, loading)
    assert row["gaps_steady"]["worst"] == pytest.approx(300.0)  # it crosses the window's end
    row = gap_figures([tokens], 0.0, Update(2, 10.05, 10.35, 10.4))
    assert row["gaps_loading"]["worst"] == pytest.approx(300.0)
    steady = gap_figures([tokens[:90]], 0.0, Update(2, 8.0, 8.1, 8.2))
    assert steady["worst_to_steady_p99"] == pytest.approx(1.0)
    assert steady["seconds_to_usable"] == pytest.approx(0.1)


def test_request_counts_where_it_was_under_way() -> None:
    times = [(0.0, 1.0), (2.0, 0.5), (3.0, 5.0)]
    figures = wait_figures("door", times, steady=(0.9, 2.1), at_switch=(7.0, 7.5), after=(9.0, 9.5))
    assert (figures["door_steady"]["count"], figures["door_steady"]["worst"]) == (2, 1000.0)
    assert (figures["door_at_switch"]["count"], figures["door_at_switch"]["median"]) == (1, 5000.0)
    assert figures["door_after"] == {"count": 0, "median": 0.0, "p99": 0.0, "worst": 0.0}


def gaps_row(side: str, worst: float, door: bool) -> dict[str, Any]:
    three = {"count": 9, "median": 10.0, "p99": 20.0, "worst": worst}
    names = ["gaps_steady", "gaps_loading", "first_token_steady", "first_token_loading"]
    names += ["door_steady", "door_at_switch"] if door else []
    return {"side": side, "worst_to_steady_p99": worst / 20, "seconds_to_usable": 2.0} | {
        name: dict(three) for name in names
    }


def test_gaps_table_has_a_line_for_each_window_of_each_server() -> None:
    each = [gaps_row("stacked", 22.0, True), gaps_row("stacked", 24.0, True)]
    each += [gaps_row("vllm", 60.0, False), gaps_row("vllm", 70.0, False)]
    read = {"bytes": 234_000_000, "cold_seconds": 0.4, "warm_seconds": 0.1}
    three = {"median": 0.01, "least": 0.01, "most": 0.02, "count": 20}
    switch = {"adapters": 500, "switch_ms": three, "waited_ms": three}
    result = gaps_result(TOLD, {"streams": 3}, each, read, switch)
    assert [row[:2] for row in result.rows] == [
        ["Stacked", "steady"],
        ["Stacked", "loading"],
        ["vLLM's server", "steady"],
        ["vLLM's server", "loading"],
    ]
    assert cell(result, 1, "worst to steady p99") == "1.15 (1.10 to 1.20)"
    assert cell(result, 3, "worst to steady p99") == "3.25 (3.00 to 3.50)"
    assert "234 MB takes 0.40 s from disk" in result.notes[1]
    assert "staged group of 500, excluding the engine: 0.010 ms (most 0.020)" in result.notes[2]
    assert "worst 23.0 ms within 50 ms of the switch" in result.notes[3]
    assert result.data["rows"][0]["medians"]["gaps_loading"]["worst"] == 23.0
    json.dumps(result.data)


def test_reading_is_timed_over_every_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(bytes(1000))
    read = read_seconds([tmp_path / "one", tmp_path / "two"])
    assert read["bytes"] == 2000
    assert read["cold_seconds"] >= 0


# -- what is kept ---------------------------------------------------------------------------

CHARTS = [
    Chart(
        "Throughput (tokens/s)",
        [
            Bar("8 adapters", "Stacked", Spread.of([180.0, 190.0, 200.0])),
            Bar("8 adapters", "vLLM's kernel", Spread.of([100.0])),
            Bar("base", "Stacked", Spread.of([210.0])),
        ],
        line=1.0,
    ),
    Chart("Nothing", []),
]


def test_picture_is_svg_with_every_name_and_value_in_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "plot.svg"
    draw(CHARTS, "stacked bench <offline> & more", path)
    texts = {
        "".join(each.itertext()).strip() for each in ElementTree.parse(path).iter(f"{SVG}text")
    }
    assert {"8 adapters", "base", "Stacked", "vLLM's kernel", "190", "100", "210"} <= texts
    assert "Throughput (tokens/s)" in texts
    assert "stacked bench <offline> & more" in texts
    assert not any("Nothing" in text for text in texts)


def test_a_side_has_one_colour_in_all_charts(tmp_path: Path) -> None:
    one = Spread.of([1.0])
    charts = [
        Chart("All", [Bar("x", "off", one), Bar("x", "ours", one), Bar("x", "theirs", one)]),
        Chart("Two of them", [Bar("x", "ours", one), Bar("x", "theirs", one)]),
    ]
    draw(charts, "title", tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    # Two charts with a bar and a legend's patch each; `off` is in the first alone.
    counts = [drawn.count(f"fill: {colour}") for colour in ("#0072b2", "#e69f00", "#009e73")]
    assert counts == [2, 4, 4]


def test_same_figures_draw_the_same_file(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        draw(CHARTS, "title", tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_picture_is_png_where_its_name_says_so(tmp_path: Path) -> None:
    draw(CHARTS, "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_picture_that_cannot_be_drawn_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ParameterInvalid, match=r"\.svg or \.png"):
        check_plot(Path("plot.jpg"))
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ParameterInvalid, match=r"install stacked\[bench\]"):
        check_plot(Path("plot.svg"))


def test_table_is_kept_as_markdown_under_its_circumstances(tmp_path: Path) -> None:
    result = Result("offline", {"x": 1}, ["row", "value"], [["a|b", "1.0"]], notes=["A note."])
    figures = with_circumstances(result.data, ["stacked", "bench", "offline"], "Shared machine.")
    text = markdown(result, figures)
    assert "    stacked bench offline\n" in text
    assert "| row | value |\n| --- | --- |\n| a\\|b | 1.0 |\n" in text
    assert "Shared machine." in text
    assert text.endswith("A note.\n")
    write(as_json(figures), tmp_path / "new" / "figures.json")
    kept = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert kept["x"] == 1
    assert kept["note"] == "Shared machine."
    assert kept["machine"]["cores"] >= 1
    assert {"python", "torch"} <= kept["versions"].keys()
