"""Two of vLLM's engines behind one `stacked serve`: updates under traffic, deaths, ends.

Long: every death is followed by a start of both. `pytest -m long tests/api/test_data_parallel.py`
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import pytest
import yaml

from tests.api import test_live_update as one_engine
from tests.api.aftermath import kill
from tests.api.test_live_update import API, asking, create_group, follow, ok, status, swap, update
from tests.conftest import PROMPT, TinyModels
from tests.processes import Process, descendants, wait_until_gone
from tests.serving import Server, free_port, metric, serving, wait_until_healthy
from tests.waiting import until

pytestmark = [pytest.mark.engine, pytest.mark.long]

ids, texts = one_engine.ids, one_engine.texts  # fixtures, here of this module's server

HANG_SECONDS = 15
RANKS = (0, 1)
SLOTS = 2


@pytest.fixture(scope="module")
def live(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("parallel")
    port = free_port()
    tree = {
        "base": {"model": str(tiny_models.base), "key": "base"},
        "group": {"members": [{"key": "a", "source": str(tiny_models.adapters["a"])}]},
        "engine": {
            "data_parallel_size": len(RANKS),
            "max_model_len": 1024,
            "max_loras": SLOTS,
            "max_cpu_loras": 12,
            "kv_cache_memory_bytes": 2**28,
        },
        "server": {
            "port": port,
            "drain_seconds": 60,
            "adapter_roots": [str(tiny_models.base.parent)],
        },
        "supervision": {"hang": f"{HANG_SECONDS}s", "deaths": 20},
    }
    path = directory / "two.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with serving(str(path), "--data-dir", "data", directory=directory, port=port) as running:
        yield running


def engine(server: Server, rank: int) -> int:
    """The process of an engine, by the name that it writes into each line of its log."""
    logs = sorted((server.directory / "data" / "logs").glob("engine-*.log"))
    return int(re.findall(rf"\(EngineCore_DP{rank} pid=(\d+)\)", logs[-1].read_text())[-1])


def processes(server: Server) -> dict[Process, str]:
    """The engines and the process that counts their requests, all forked by the same one."""
    return {
        each: title
        for child, _ in descendants(server.process.pid)
        for each, title in descendants(child).items()
    }


def at(client: httpx.Client, key: str, rank: int) -> str:
    """The greedy answer of a key on one of the engines."""
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "model": key}
    headers = {"X-data-parallel-rank": str(rank)}
    return str(ok(client.post("/v1/completions", json=body, headers=headers))["choices"][0]["text"])


def until_right(asked: one_engine.Asked, count: int) -> None:
    """Return when so many answers were right, and all of them."""
    until(lambda: asked.right >= count or asked.wrong, 240)
    assert not asked.wrong, asked.wrong[:3]


def check_answers(server: Server, wanted: dict[str, str]) -> None:
    """Each key has its answer, on each engine."""
    with server.client() as client:
        for key, text in wanted.items():
            assert [at(client, key, rank) for rank in RANKS] == [text] * len(RANKS), key


def by_engine(server: Server, name: str) -> list[float]:
    """A metric of vLLM's, of each engine."""
    lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    own = [line for line in lines if line.startswith(f"{name}{{")]
    return [
        sum(float(line.split()[-1]) for line in own if f'engine="{rank}"' in line) for rank in RANKS
    ]


@pytest.fixture
def pair(live: Server, ids: dict[str, str], texts: dict[str, str]) -> dict[str, str]:
    """Serves `x` and `y`; what each key answers."""
    with live.client() as client:
        assert swap(client, {"x": ids["a"], "y": ids["b"]})["status"] == "SUCCEEDED"
    wanted = {"x": texts["a"], "y": texts["b"], "base": texts["base"]}
    check_answers(live, wanted)
    return wanted


# -- what is served, and updates ------------------------------------------------------------


def test_what_is_served_is_listed_once_and_counted_by_engine(
    live: Server, pair: dict[str, str]
) -> None:
    with live.client() as client:
        listed = [each["id"] for each in ok(client.get("/v1/models"))["data"]]
        assert sorted(listed) == ["base", "x", "y"]
        shown = status(client)
        assert shown["engine"]["state"] == "serving"
        assert [each["resident"] for each in shown["models"]] == [True, True]
        refused = client.post(
            "/v1/completions",
            json={"model": "x", "prompt": PROMPT},
            headers={"X-data-parallel-rank": str(len(RANKS))},
        )
        assert refused.status_code == 400, refused.text
    before = by_engine(live, "vllm:request_success_total")
    with asking(live, pair, clients=4) as asked:
        until_right(asked, 40)
    after = by_engine(live, "vllm:request_success_total")
    assert all(now > then for then, now in zip(before, after, strict=True))
    command = [sys.executable, "-m", "stacked", "status", "--url", live.url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    firsts = {line.split()[0] for line in said.splitlines() if line.strip()}
    assert {"x", "y"} <= firsts, said
    assert "ACTIVE" in said


def test_no_response_is_lost_or_mixed_under_a_storm_of_updates(
    live: Server, ids: dict[str, str], texts: dict[str, str]
) -> None:
    one_engine.test_no_response_is_lost_or_mixed_under_a_storm_of_updates(live, ids, texts)


def test_fifty_bad_updates_in_a_row_disturb_no_answer(
    live: Server, ids: dict[str, str], texts: dict[str, str], tiny_models: TinyModels
) -> None:
    one_engine.test_fifty_bad_updates_in_a_row_disturb_no_answer(live, ids, texts, tiny_models)


def test_what_one_engine_refuses_fails_the_update_and_serves_once_it_does_not(
    live: Server, ids: dict[str, str], texts: dict[str, str], pair: dict[str, str]
) -> None:
    with live.client() as client, asking(live, pair) as asked:
        before = status(client)
        group = create_group(client, {"x": ids["c"], "z": ids["spare"]})
        with no_more_files(engine(live, 1)):
            for _ in range(3):
                work = follow(client, update(client, group))
                assert work["status"] == "FAILED"
                errors = ok(client.get(f"{API}/workRequests/{work['id']}/errors"))
                assert any("on engine 1" in row["message"] for row in errors), errors
                assert not any("on engine 0" in row["message"] for row in errors), errors
        after = status(client)
        for name in ("groupId", "generation", "draining", "update"):
            assert after[name] == before[name]
        until_right(asked, 100)
    assert not asked.wrong, asked.wrong[:3]
    print(f"3 updates that one engine refuses, {asked.right} right answers")
    check_answers(live, pair)
    with live.client() as client:
        assert follow(client, update(client, group))["status"] == "SUCCEEDED"
    check_answers(live, {"x": texts["c"], "z": texts["spare"], "base": texts["base"]})


@contextmanager
def no_more_files(pid: int) -> Iterator[None]:
    """A process that can open nothing within the block, as one that has too much open."""
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    opened = {int(each) for each in os.listdir(f"/proc/{pid}/fd")}
    free = next(number for number in range(len(opened) + 1) if number not in opened)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def test_more_adapters_than_slots_wait_for_no_answer_for_ever(
    live: Server, ids: dict[str, str], texts: dict[str, str]
) -> None:
    with live.client() as client:
        assert swap(client, ids)["status"] == "SUCCEEDED"
    most = 0
    with asking(live, texts, clients=18) as asked:
        while asked.right < 400 and not asked.wrong:
            most = max(most, len(running_adapters(live)))
    assert not asked.wrong, asked.wrong[:3]
    assert 1 <= most <= SLOTS
    print(f"{len(texts)} keys in {SLOTS} slots, {asked.right} right answers")
    check_answers(live, texts)


def running_adapters(server: Server) -> list[str]:
    """The keys that vLLM runs, of whichever engine made the last step."""
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    found = re.search(r'vllm:lora_requests_info\{.*running_lora_adapters="([^"]*)"', text)
    return found.group(1).split(",") if found and found.group(1) else []


def test_requests_of_a_pinned_key_go_to_its_engine_and_a_pin_changes_live(
    live: Server, ids: dict[str, str], texts: dict[str, str]
) -> None:
    members = {"x": ids["a"], "y": ids["b"]}
    wanted = {"x": texts["a"], "y": texts["b"]}
    for x, y in ((0, 1), (1, 0)):
        with live.client() as client:
            pins = {"stacked.gpus": json.dumps({"x": [x], "y": [y]})}
            assert swap(client, members, pins)["status"] == "SUCCEEDED"
        for key, rank in (("x", x), ("y", y)):
            before = by_engine(live, "vllm:request_success_total")
            with asking(live, {key: wanted[key]}, clients=4) as asked:
                until_right(asked, 20)
            after = by_engine(live, "vllm:request_success_total")
            grew = [now > then for then, now in zip(before, after, strict=True)]
            assert grew == [each == rank for each in RANKS]
    with live.client() as client:
        before_pin = status(client)
        pins = {"stacked.gpus": json.dumps({"x": [len(RANKS)]})}
        group = create_group(client, members, pins)
        refused = one_engine.asked_live(client, group)
        assert "card 2" in refused.text, refused.text
        assert status(client)["generation"] == before_pin["generation"]


# -- deaths ---------------------------------------------------------------------------------


class Requests:
    """Long requests, whole and streamed, of some keys (on a rank, if it matters)."""

    def __init__(
        self, server: Server, keys: Sequence[tuple[str, int | None]], tokens: int = 900
    ) -> None:
        self._server, self._tokens = server, tokens
        self._pool = concurrent.futures.ThreadPoolExecutor(len(keys))
        self._asked = [
            self._pool.submit(self._ask, key, rank, stream=at % 2 == 1)
            for at, (key, rank) in enumerate(keys)
        ]

    def _ask(self, key: str, rank: int | None, *, stream: bool) -> tuple[int, str]:
        body = {"model": key, "prompt": PROMPT, "max_tokens": self._tokens, "ignore_eos": True}
        headers = {} if rank is None else {"X-data-parallel-rank": str(rank)}
        with self._server.client(headers=headers) as client:
            answer = client.post("/v1/completions", json=body | {"stream": stream}, timeout=300)
            return answer.status_code, answer.text

    def ends(self) -> list[tuple[int, str]]:
        """What each got: the status and the body."""
        ends = [each.result(timeout=300) for each in self._asked]
        self._pool.shutdown()
        return ends


def check_all_died(ends: list[tuple[int, str]]) -> None:
    for code, text in ends:
        if code == 200:  # a stream that had begun ends with an error event
            assert "EngineDead" in text, text[-600:]
            assert '"finish_reason":"' not in text, text[-600:]
        else:
            assert (code, json.loads(text)["error"]["code"]) == (503, "EngineDead")


def running(server: Server) -> list[float]:
    return by_engine(server, "vllm:num_requests_running")


def reason(server: Server) -> str:
    """Why no engine serves, as soon as that is known."""
    with server.client() as client:
        until(lambda: "again in" in status(client)["engine"]["reason"], 120)
        return str(status(client)["engine"]["reason"])


def back(server: Server, began: float, former: dict[Process, str]) -> None:
    """Return when other engines serve."""
    wait_until_healthy(server, "/health/ready")
    print(f"served again after {time.monotonic() - began:.1f} s")
    wait_until_gone(former)
    assert len(processes(server)) == len(RANKS) + 1
    with server.client() as client:
        until(lambda: status(client)["state"] in ("ACTIVE", "NEEDS_ATTENTION"))


def test_death_of_one_engine_ends_all_requests_and_all_come_back(
    live: Server, pair: dict[str, str]
) -> None:
    with live.client() as client:
        before = status(client)
    for rank in RANKS:
        former = processes(live)
        engines = {engine(live, each) for each in RANKS}
        (counting,) = {pid for pid, _ in former} - engines
        if rank == 0:  # without the process that counts requests everything goes on
            os.kill(counting, signal.SIGKILL)
            then = by_engine(live, "vllm:request_success_total")
            with asking(live, pair) as asked:
                until_right(asked, 300)
            now = by_engine(live, "vllm:request_success_total")
            assert min(each - least for least, each in zip(then, now, strict=True)) > 60
        asked_long = Requests(live, [(key, None) for key in ("x", "y", "base") * 4])
        until(lambda: min(running(live)) >= 2)
        os.kill(engine(live, rank), signal.SIGKILL)
        began = time.monotonic()
        why = reason(live)
        assert f"EngineCore_DP{rank} was killed by signal 9" in why
        assert f"it starts again in {rank + 1} s" in why
        assert httpx.get(f"{live.url}/health/live").status_code == 200
        refused = httpx.get(f"{live.url}/health/ready")
        assert (refused.status_code, refused.json()["code"]) == (503, "NotReady")
        check_all_died(asked_long.ends())
        back(live, began, former)
        check_answers(live, pair)
    assert metric(live, 'stacked_engine_deaths_total{cause="signal"}') == len(RANKS)
    assert metric(live, 'stacked_engine_restarts_total{outcome="succeeded"}') == len(RANKS)
    assert metric(live, "stacked_quarantined_adapters") == 0
    with live.client() as client:
        after = status(client)
    for name in ("groupId", "generation", "deploymentId", "state"):
        assert after[name] == before[name]


def test_update_under_way_when_an_engine_dies_is_whole_or_not_at_all(
    live: Server, ids: dict[str, str], texts: dict[str, str], pair: dict[str, str]
) -> None:
    former, began = processes(live), time.monotonic()
    with live.client() as client:
        group = create_group(client, {"x": ids["c"], "y": ids["spare"]})
        work_id = update(client, group)
        os.kill(engine(live, 1), signal.SIGKILL)
        work = follow(client, work_id)
        until(lambda: httpx.get(f"{live.url}/health/ready").status_code == 503)
        back(live, began, former)
        errors = ok(client.get(f"{API}/workRequests/{work_id}/errors"))
        assert {row["code"] for row in errors} <= {"EngineDead"}
    new = {"x": texts["c"], "y": texts["spare"], "base": texts["base"]}
    check_answers(live, new if work["status"] == "SUCCEEDED" else pair)


def test_engine_that_makes_no_step_is_ended_with_the_others(
    live: Server, pair: dict[str, str]
) -> None:
    former = processes(live)
    os.kill(engine(live, 1), signal.SIGSTOP)
    began = time.monotonic()
    asked_long = Requests(live, [(key, rank) for key in ("x", "y", "base") for rank in RANKS])
    why = reason(live)
    assert time.monotonic() - began >= HANG_SECONDS - 1
    assert "EngineCore_DP1 made no step" in why
    assert metric(live, 'stacked_engine_deaths_total{cause="hang"}') == 1
    ends = asked_long.ends()
    # Those on the engine that went on may have been whole before.
    whole = [end for end in ends if '"finish_reason":"length"' in end[1]]
    assert len(whole) <= len(ends) // 2
    check_all_died([end for end in ends if end not in whole])
    back(live, began, former)
    check_answers(live, pair)


def test_adapter_that_an_engine_dies_with_is_left_out_whatever_the_other_engine_did(
    live: Server, pair: dict[str, str]
) -> None:
    for _ in range(2):
        former = processes(live)
        asked_long = Requests(live, [("y", 1), ("x", 0), ("base", 0)])
        until(lambda: running(live) == [2, 1])
        os.kill(engine(live, 1), signal.SIGKILL)
        began = time.monotonic()
        check_all_died(asked_long.ends())
        until(lambda: httpx.get(f"{live.url}/health/ready").status_code == 503)
        back(live, began, former)
    with live.client() as client:
        refused = client.post("/v1/completions", json={"model": "y", "prompt": PROMPT})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ModelQuarantined")
        assert metric(live, "stacked_quarantined_adapters") == 1
        until(lambda: status(client)["state"] == "NEEDS_ATTENTION")
        states = {each["inferenceKey"]: each["state"] for each in status(client)["models"]}
        assert states == {"x": "SUCCESS", "y": "FAILED"}
        check_answers(live, {key: pair[key] for key in ("x", "base")})
        assert client.post("/models/y").status_code == 200
        check_answers(live, pair)
        assert metric(live, "stacked_quarantined_adapters") == 0
        until(lambda: status(client)["state"] == "ACTIVE")


# -- ends -----------------------------------------------------------------------------------


def test_nothing_outlives_a_killed_server_and_sigterm_lets_requests_of_all_finish(
    live: Server, pair: dict[str, str]
) -> None:
    kill(live)
    live.start()
    check_answers(live, pair)
    started = descendants(live.process.pid)
    asked_long = Requests(live, [("x", 0), ("y", 1), ("base", 0), ("x", 1)], tokens=600)
    until(lambda: min(running(live)) >= 1)
    live.process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{live.url}/health/ready").status_code == 503)
    late = httpx.post(f"{live.url}/v1/completions", json={"model": "x", "prompt": PROMPT})
    assert (late.status_code, late.json()["error"]["code"]) == (503, "NotReady")
    for code, text in asked_long.ends():
        assert code == 200
        assert '"finish_reason":"length"' in text, text[-600:]
    assert live.process.wait(timeout=60) == 0
    wait_until_gone(started)
