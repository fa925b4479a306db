"""Two real servers of one fleet over PostgreSQL, with models whose answers say which they are."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.models.remote import Remote, begun, changed, ended, group, model, serving_models
from tests.postgres import Postgres
from tests.serving import Server, metric, wait_until_healthy
from tests.waiting import until

SCORE = """
def load_model(model_folder):
    with open(model_folder + "/number") as file:
        return int(file.read())
def predict(data, model):
    return {"number": model}
"""


class One(NamedTuple):
    """A replica."""

    server: Server
    remote: Remote


class Answer(NamedTuple):
    sent: float
    ended: float
    status: int
    generation: int
    said: object


def number_in(directory: Path, number: int) -> Path:
    folder = directory / f"model-{number}"
    folder.mkdir(exist_ok=True)
    (folder / "score.py").write_text(SCORE)
    (folder / "number").write_text(str(number))
    return folder


@contextlib.contextmanager
def replica(directory: Path, name: str, url: str, **fleet: Any) -> Iterator[One]:
    place = directory / name
    place.mkdir()
    source = str(number_in(directory, 0))
    with serving_models(
        place,
        group={
            "name": "numbers",
            "kind": "HETEROGENEOUS",
            "members": [{"key": "n", "source": source}],
        },
        storage={"database": url, "contents": str(directory / "contents")},
        # A busy machine must not end an update.
        fleet={"replica": name, "hold_seconds": 20, **fleet},
    ) as (server, remote):
        wait_until_healthy(server, "/health/ready")
        yield One(server, remote)


@contextlib.contextmanager
def clients(
    servers: Sequence[Server], ask: Callable[[httpx.Client], Answer]
) -> Iterator[list[Answer]]:
    """A client of each server, and what it gets."""
    answers: list[Answer] = []
    stop = threading.Event()

    def work(server: Server) -> None:
        with server.client() as http:
            while not stop.is_set():
                answers.append(ask(http))
                stop.wait(0.02)  # both share the machine with the servers

    threads = [threading.Thread(target=work, args=(each,)) for each in servers]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def asked(
    http: httpx.Client,
    path: str = "/predict",
    body: object = None,
    said: Callable[[Any], object] = lambda answer: answer.get("number"),
) -> Answer:
    sent = time.monotonic()
    answer = http.post(path, json=body or {}, headers={"model-key": "n"})
    generation = int(answer.headers.get("model-generation", 0))
    return Answer(sent, time.monotonic(), answer.status_code, generation, said(answer.json()))


def check(answers: Sequence[Answer], meant: Mapping[int, object]) -> None:
    """Each is of the generation that it names, and none began after a newer one had ended."""
    for each in answers:
        assert (each.status, each.said) == (200, meant[each.generation])
    newest, waiting = 0, sorted(answers, key=lambda each: each.ended)
    for each in sorted(answers, key=lambda each: each.sent):
        while waiting and waiting[0].ended < each.sent:
            newest = max(newest, waiting.pop(0).generation)
        assert each.generation >= newest


@pytest.fixture(scope="module")
def url(postgres: Postgres) -> str:
    postgres.run("CREATE DATABASE of_a_fleet")
    return postgres.url("of_a_fleet")


def new_group(one: One, number: int) -> str:
    files = {"score.py": SCORE.encode(), "number": str(number).encode()}
    return group(one.remote, "HETEROGENEOUS", n=model(one.remote, **files))


def test_in_session_mode_a_client_gets_nothing_older_than_it_has(
    tmp_path: Path, postgres: Postgres
) -> None:
    postgres.run("CREATE DATABASE of_sessions")
    place = postgres.url("of_sessions")
    with replica(tmp_path, "one", place, mode="session", hold_seconds=0.1) as one:
        now = one.remote.status()["generation"]
        for seen, status in ((now, 200), (now - 1, 200), ("abc", 200), (now + 1, 503)):
            answer = one.remote.http.post(
                "/predict", json={}, headers={"model-key": "n", "model-generation": str(seen)}
            )
            assert answer.status_code == status, answer.text
        assert (answer.json()["code"], answer.headers["retry-after"]) == ("NotReady", "1")


def test_two_servers_switch_together_and_one_that_dies_returns(tmp_path: Path, url: str) -> None:
    with replica(tmp_path, "one", url) as one, replica(tmp_path, "two", url) as two:
        servers = (one, two)
        status: list[dict[str, Any]] = [each.remote.status() for each in servers]
        (id,) = {each["deploymentId"] for each in status}
        (first,) = {each["generation"] for each in status}
        meant: dict[int, object] = {first: 0}
        with clients([each.server for each in servers], asked) as answers:
            for number, server in zip(range(1, 4), itertools.cycle(servers), strict=False):
                group_id = new_group(server, number)
                meant[first + number] = number
                assert changed(server.remote, id, group_id) == "SUCCEEDED"
                count = len(answers)
                until(partial(lambda count: len(answers) > count + 10, count))
        check(answers, meant)
        assert {each.generation for each in answers} == set(meant)
        refusals(one, id)
        dies(two, one, id, first + 4)
        leaves(two, one, id)


def refusals(one: One, id: str) -> None:
    """What the other replicas could not follow."""
    for answer in (
        one.remote.http.post("/models/n"),
        one.remote.http.delete("/models/n"),
        one.remote.http.delete(f"/20190101/modelDeployments/{id}"),
        begun(one.remote, id, new_group(one, 9), "ZDT"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "NotAllowed")
        assert "in a fleet" in answer.json()["message"]


def dies(two: One, one: One, id: str, generation: int) -> None:
    two.server.process.send_signal(signal.SIGKILL)
    two.server.process.wait()
    assert changed(one.remote, id, new_group(one, 5)) == "SUCCEEDED"
    with one.server.client() as http:
        assert asked(http)[2:] == (200, generation, 5)
    two.server.start("/health/ready")
    with two.server.client() as http:
        assert asked(http)[2:] == (200, generation, 5)
    assert metric(two.server, 'stacked_fleet_gate{state="open"}') == 1
    assert metric(two.server, "stacked_fleet_generation") == generation


def leaves(two: One, one: One, id: str) -> None:
    """A server that is stopped is waited for by nobody."""
    two.server.process.send_signal(signal.SIGTERM)
    two.server.process.wait()
    answer = begun(one.remote, id, new_group(one, 6))
    work = answer.headers["opc-work-request-id"]
    assert ended(one.remote, work) == "SUCCEEDED"
    logs = json.dumps(one.remote.ask("GET", f"/workRequests/{work}/logs"))
    assert "1 of 1 replicas" in logs
