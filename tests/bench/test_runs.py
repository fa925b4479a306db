"""Each benchmark from its settings to its result, with a double where an engine would be."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stacked.bench import engine_child, gaps, offline, online, rounds, server, start
from stacked.bench.load import FIGURES, Lengths, Load
from stacked.bench.report import Result
from stacked.bench.subject import Subject
from stacked.bench.workload import Row
from stacked.errors import EngineStartFailed, ParameterInvalid
from tests.bench.fake import serving_with
from tests.bench.test_subject import Told

# An engine child that runs nothing: one second a request with LoRA off, two with it.
ENGINE = """
import json, sys
asked = json.loads(sys.stdin.readline())
if asked["options"].get("fails"):
    print(json.dumps({"error": "no room for it"}), flush=True)
    sys.exit(1)
print(json.dumps({"start_seconds": 1}), flush=True)
for line in sys.stdin:
    run = json.loads(line)
    requests = len(run["assigned"])
    assert all((number is None) != asked["lora"] for number in run["assigned"])
    print(json.dumps({
        "seconds": requests * (2 if asked["lora"] else 1), "requests": requests,
        "input_tokens": requests * run["input"], "output_tokens": requests * run["output"],
        "peak_bytes": 1000, "gpu_bytes": 0,
    }), flush=True)
"""

# A server that is healthy at once and answers any completion with one token.
SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.end_headers()
        self.wfile.write(b'data: {"choices": [{"text": "a"}]}\\n\\ndata: [DONE]\\n\\n')
    def log_message(self, *words): pass
HTTPServer(("127.0.0.1", int(sys.argv[-1])), Answer).serve_forever()
"""


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A base and three adapters that nobody will read."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    for number in range(3):
        path = tmp_path / "adapters" / f"adapter-{number}"
        path.mkdir(parents=True)
        (path / "adapter_config.json").write_text('{"r": 8}')
        (path / "adapter_model.safetensors").write_bytes(bytes(100))
    monkeypatch.setattr(Subject, "options", lambda _: {"max_loras": 2})
    adapters = sorted((tmp_path / "adapters").iterdir())
    return Subject(base, adapters, 8, "attention", {"max_model_len": 200})


# -- offline --------------------------------------------------------------------------------


def offline_settings(**changes: Any) -> offline.Settings:
    rows = [Row(1), Row(3)]
    return offline.Settings(rows, 2, 4, 8, 6, 4, rounds=2, **changes)


@pytest.mark.parametrize("together", [True, False])
def test_offline_measures_every_row_in_every_round_on_every_side(
    together: bool, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "ENGINE_CHILD", [sys.executable, "-c", ENGINE])
    monkeypatch.setattr(rounds, "IDLE_SECONDS", 0.0)
    settings = offline_settings(together=together, peer=True)
    tell = Told()
    result = offline.run_offline(subject, settings, tmp_path / "run", tell)
    each = result.data["each"]
    seen = {(row["round"], row["side"], row["row"]) for row in each}
    assert len(each) == len(seen) == 2 * 3 * 2
    on = [row["ratio"]["median"] for row in result.data["rows"] if row["side"] != "off"]
    assert on == [0.5] * 4
    assert tell.fractions[-1] == 1.0
    assert str(tmp_path) not in json.dumps(result.data)


def test_engine_that_does_not_start_is_told(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "ENGINE_CHILD", [sys.executable, "-c", ENGINE])
    failing = Subject(subject.base, subject.adapters, 8, "attention", {"fails": True})
    with pytest.raises(EngineStartFailed, match=r"LoRA off.*no room for it"):
        offline.run_offline(failing, offline_settings(), tmp_path / "run", Told())


class Engine:
    """Answers with as many tokens as asked, and keeps who was asked at once."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, tuple[int, ...]]] = []
        self.now = self.most = 0

    async def generate(
        self, prompts: Sequence[list[int]], loaded: Any, *, request_id: str, sampling: Any
    ) -> list[Any]:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        self.asked.append((loaded, tuple(prompts[0])))
        tokens = list(range(sampling["max_tokens"]))
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens)])]


async def test_runner_keeps_a_batch_under_way_and_counts_its_tokens() -> None:
    engine = Engine()
    runner = engine_child.Runner(engine, ["one", "two"], vocabulary=100)  # type: ignore[arg-type,list-item]
    message = {"assigned": [0, 1, None, 0, 1], "seed": 3, "batch": 2, "input": 6, "output": 4}
    told = await runner.run(message)
    assert (told["requests"], told["input_tokens"], told["output_tokens"]) == (5, 30, 20)
    assert engine.most == 2
    assert sorted(str(loaded) for loaded, _ in engine.asked) == ["None", "one", "one", "two", "two"]
    prompts = [prompt for _, prompt in engine.asked]
    assert len(set(prompts)) == 5
    assert all(len(prompt) == 6 and 3 <= min(prompt) <= max(prompt) < 100 for prompt in prompts)
    engine.asked.clear()
    await runner.run(message)
    assert [prompt for _, prompt in engine.asked] == prompts


# -- online ---------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("baseline", ["vllm", "other"])
def test_online_loads_both_servers_in_turn(
    baseline: str,
    together: bool,
    subject: Subject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    @contextmanager
    def served(_: Subject, settings: Any, side: str, directory: Path) -> Iterator[str]:
        yield side

    @contextmanager
    def generator(_: Path) -> Iterator[None]:
        yield None

    def run_load(_: object, said: Sequence[str], load: Load) -> Mapping[str, float]:
        side = said[said.index("--base-url") + 1]
        order.append(side)
        return dict.fromkeys(FIGURES, 2.0 if side == "stacked" else 1.0)

    monkeypatch.setattr(online, "_server", served)
    monkeypatch.setattr(online, "generator", generator)
    monkeypatch.setattr(online, "run_load", run_load)
    monkeypatch.setattr(rounds, "IDLE_SECONDS", 0.0)
    loads = [Load(4, 0.0, 8), Load(0, 2.0, 8)]
    own = baseline == "vllm"
    settings = online.Settings(
        loads,
        Lengths(8, 8),
        starts=2,
        rounds=2,
        peer=own,
        together=together,
        against={} if own else {"max_num_seqs": 2},
    )
    result = online.run_online(subject, settings, tmp_path, Told())
    assert len(result.data["each"]) == 2 * 2 * 2 * 2
    assert result.data["rows"][0]["request_throughput_ratio"]["median"] == 2.0
    assert [row["load"] for row in result.data["rows"]] == [
        *("4 clients", "4 clients"),
        *("2 requests/s", "2 requests/s"),
    ]
    # The first of each server's loads is a warm-up and is not kept.
    assert len(order) == len(result.data["each"]) + 4
    if together:
        assert order[2:6] == ["stacked", baseline, baseline, "stacked"]
    else:
        assert order == ["stacked"] * 5 + [baseline] * 10 + ["stacked"] * 5
    assert result.rows[1][1] == ("vLLM's server" if own else "Stacked, max_num_seqs=2")


@pytest.mark.parametrize("side", ["stacked", "other"])
def test_the_baseline_of_our_own_differs_in_the_setting_alone(
    side: str, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees: list[dict[str, Any]] = []
    monkeypatch.setattr(Subject, "options", lambda own: dict(own.engine))

    @contextmanager
    def serving(tree: dict[str, Any], directory: Path, data_dir: Path) -> Iterator[str]:
        trees.append(tree)
        yield "url"

    monkeypatch.setattr(server, "serving", serving)
    settings = online.Settings([], Lengths(8, 8), 1, 1, peer=False, against={"max_num_seqs": 2})
    with online._server(subject, settings, side, tmp_path):
        pass
    (tree,) = trees
    if side == "other":
        assert tree["engine"].pop("max_num_seqs") == 2
    assert tree == subject.tree(subject.options())


def test_two_baselines_are_one_too_many(subject: Subject, tmp_path: Path) -> None:
    settings = online.Settings([], Lengths(8, 8), 1, 1, peer=True, against={"max_num_seqs": 2})
    with pytest.raises(ParameterInvalid, match="one baseline"):
        online.run_online(subject, settings, tmp_path, Told())


# -- start ----------------------------------------------------------------------------------


def test_start_times_every_group_cold_and_warm_on_both_sides(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", SERVER]
    monkeypatch.setattr(server, "ours", lambda *_: list(command))
    monkeypatch.setattr(server, "theirs", lambda *_: list(command))
    settings = start.Settings([1, 3], rounds=1)
    result = start.run_start(subject, settings, tmp_path / "run", Told())
    each = result.data["each"]
    assert len(each) == 8
    assert all(0 < row["healthy"] <= row["first_token"] for row in each)
    assert [(row["group"], row["side"], row["state"]) for row in each[:4]] == [
        (1, "stacked", "cold"),
        (1, "stacked", "warm"),
        (1, "vllm", "cold"),
        (1, "vllm", "warm"),
    ]


def test_server_that_does_not_start_is_told(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such option')"]
    monkeypatch.setattr(server, "ours", lambda *_: list(command))
    with pytest.raises(EngineStartFailed, match="no such option"):
        start.time_start(subject, "stacked", tmp_path / "run", tmp_path / "data")


# -- gaps -----------------------------------------------------------------------------------


def run_gaps(
    subject: Subject, directory: Path, patch: pytest.MonkeyPatch, **changes: Any
) -> Result:
    def serve(
        side: str, subject: Subject, place: Path, data: Path, *, loading: bool
    ) -> AbstractContextManager[str]:
        assert loading
        tree = subject.tree({})
        if side == "vllm":
            del tree["group"]["members"][1:]
        started: AbstractContextManager[str] = serving_with("")(tree, place, data)
        return started

    patch.setattr(gaps, "serve", serve)
    patch.setattr(gaps, "_SETTLE_SECONDS", 0.1)
    settings = gaps.Settings(streams=2, repeats=2, steady_seconds=0.3, **changes)
    return gaps.run_gaps(subject, settings, directory, Told())


def test_gaps_refuse_weights_beside_which_no_adapter_shows(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = replace(subject, engine={"load_format": "dummy"})
    with pytest.raises(ParameterInvalid, match="a base with weights of its own"):
        run_gaps(drawn, tmp_path / "run", monkeypatch)


def test_gaps_are_measured_around_both_ways_to_load(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_gaps(subject, tmp_path / "run", monkeypatch)
    each = result.data["each"]
    assert [row["side"] for row in each] == ["stacked", "stacked", "vllm", "vllm"]
    for row in each:
        assert row["gaps_steady"]["count"] > 20
        assert row["gaps_loading"]["count"] > 0
        assert row["first_token_steady"]["count"] > 0
        assert row["worst_to_steady_p99"] > 0
        assert row["seconds_to_usable"] >= 0
    assert "staging" in each[0]["phases_seconds"]
    assert "door_steady" in each[0]
    assert "door_steady" not in each[2]
    assert result.data["read_the_same_bytes"]["bytes"] > 200
    json.dumps(result.data)


def test_gaps_need_something_to_load(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Subject(subject.base, subject.adapters[:1], 8, "attention", {})
    with pytest.raises(ParameterInvalid, match="two adapters"):
        run_gaps(one, tmp_path / "run", monkeypatch)
