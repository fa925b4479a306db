"""A key with arms on the real engine: whose answer a request gets, also while weights change.

What the assignment itself must be is in tests/experiments/, with doubles.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from stacked.bench.updates import Update, Updater, phase_table
from stacked.client import Client
from stacked.config import ArmConfig, Design, ExperimentConfig
from tests.api.test_live_update import create_group, follow, ok, register, status, swap, update
from tests.conftest import PROMPT, TinyModels, complete
from tests.serving import Server
from tests.waiting import until

pytestmark = pytest.mark.engine

UNITS = 25
Weights = tuple[float, float, float]


def metadata(weights: Weights) -> dict[str, str]:
    """Two experiments on the same arms: by header, and by the user of the body."""
    arms = tuple(
        ArmConfig(key=k, weight=w) for k, w in zip(("x", "y", "base"), weights, strict=True)
    )
    header = ExperimentConfig(key="größe", arms=arms, salt="one")
    user = ExperimentConfig(key="by-user", arms=arms, salt="one", unit="user")
    return Design(experiments=(header, user)).as_metadata()


@pytest.fixture(scope="module")
def live(server: Server) -> Iterator[Server]:
    """The session's server, which gets its own group back."""
    with server.client() as client:
        group_id = status(client)["groupId"]
        yield server
        assert follow(client, update(client, group_id))["status"] == "SUCCEEDED"


@pytest.fixture(scope="module")
def ids(live: Server, tiny_models: TinyModels) -> dict[str, str]:
    with live.client() as client:
        return {name: register(client, tiny_models.adapters[name]) for name in ("a", "b", "c")}


@pytest.fixture(scope="module")
def texts(live: Server, ids: dict[str, str]) -> dict[str, str]:
    """What each content answers, asked by its own key: digest -> text."""
    with live.client() as client:
        assert swap(client, ids)["status"] == "SUCCEEDED"
        digests = {each["inferenceKey"]: each["digest"] for each in status(client)["models"]}
        found = {digest: complete(client, key) for key, digest in digests.items()}
        found["base"] = complete(client, "base")
    assert len(set(found.values())) == len(found) == 4
    return found


BODY: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
CODED = "gr%C3%B6%C3%9Fe"


def test_every_way_to_a_model_is_one_to_an_experiment(
    live: Server, ids: dict[str, str], texts: dict[str, str]
) -> None:
    with live.client() as client:
        members = {"x": ids["a"], "y": ids["b"]}
        assert swap(client, members, metadata((1, 1, 1)))["status"] == "SUCCEEDED"
        cards = {card["id"]: card for card in ok(client.get("/v1/models"))["data"]}
        assert list(cards) == ["base", "x", "y", "größe", "by-user"]
        assert cards["größe"]["parent"] == "base"
        assert ok(client.get("/v1/models/größe"))["id"] == "größe"
        assert ok(client.get("/models/größe/health"))["model"] == "größe"
        arms = set()
        for number in range(9, 13):  # base, x, y, base
            who = f"user-{number}"
            unit = {"experiment-unit": who}
            named = {**unit, "model-key": CODED}
            user = {**BODY, "model": "by-user"}
            answers = [
                client.post("/v1/completions", json={**BODY, "model": "größe"}, headers=unit),
                client.post("/predict", json=BODY, headers=named),
                client.post("/models/größe/predict", json=BODY, headers=unit),
                client.post("/openai/deployments/größe/completions", json=BODY, headers=unit),
                client.post("/v1/completions", json={**user, "user": who}),
                client.post("/v1/completions", json={**user, "safety_identifier": who}),
            ]
            assert len({answer.headers["model-arm"] for answer in answers}) == 1
            for at, answer in enumerate(answers):
                assert ok(answer)["choices"][0]["text"] == texts[answer.headers["model-digest"]]
                key = "größe" if at < 4 else "by-user"
                assert ok(answer)["model"] == key
                coded = CODED if at < 4 else key
                assert answer.headers["model-experiment"] == answer.headers["model-key"] == coded
            arms.add(answers[0].headers["model-arm"])
        assert arms == {"x", "y", "base"}
        alone = client.post("/v1/completions", json={**BODY, "model": "x"})
        assert "model-experiment" not in alone.headers
        conflict = client.post(
            "/predict", json={**BODY, "model": "x"}, headers={"model-key": CODED}
        )
        assert conflict.json()["code"] == "KeyConflict"
        short = {**BODY, "max_tokens": 1, "model": "größe"}
        by_chance = (client.post("/v1/completions", json=short) for _ in range(40))
        assert {answer.headers["model-arm"] for answer in by_chance} == {"x", "y", "base"}
        shown = client.get("/metrics").text
        for each in status(client)["models"]:
            labels = f'digest="{each["digest"].removeprefix("sha256:")[:12]}",key="größe"'
            assert f"stacked_requests_total{{{labels}" in shown


class Asked:
    """What clients got while they asked: the arm of each unit in each group, and what was wrong."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts
        self.groups: dict[int, object] = {}
        """What was served in a generation."""
        self.answers: list[tuple[int, str, str, str]] = []
        self.wrong: list[str] = []
        self.updates: list[Update] = []
        """Those that changed weights alone."""

    def ask(self, client: httpx.Client, number: int) -> None:
        unit, stream = f"user-{number % UNITS}", number % 3 == 0
        body = {**BODY, "model": "größe", "stream": stream}
        answer = client.post("/v1/completions", json=body, headers={"experiment-unit": unit})
        if answer.status_code != 200:
            self.wrong.append(answer.text)
            return
        text = _streamed(answer.text) if stream else answer.json()["choices"][0]["text"]
        arm, digest = answer.headers["model-arm"], answer.headers["model-digest"]
        if text != self.texts[digest]:
            self.wrong.append(f"{unit} got {text!r} from {arm}")
        self.answers.append((int(answer.headers["model-generation"]), unit, arm, digest))

    def check(self) -> None:
        """No unit has two arms, and no arm two contents, while the group is the same one."""
        assert not self.wrong, self.wrong[:5]
        seen: dict[tuple[object, str], tuple[str, str]] = {}
        for generation, unit, arm, digest in self.answers:
            key = (self.groups[generation], unit)
            assert seen.setdefault(key, (arm, digest)) == (arm, digest), key


def _streamed(text: str) -> str:
    events = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


@contextmanager
def clients(live: Server, asked: Asked, count: int = 16) -> Iterator[None]:
    over, numbers = threading.Event(), itertools.count()

    def run() -> None:
        with live.client() as client:
            while not over.is_set() and len(asked.answers) < 100_000:
                asked.ask(client, next(numbers))

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        running = [pool.submit(run) for _ in range(count)]
        try:
            yield
        finally:
            over.set()
        for each in running:
            each.result()


def storm(live: Server, ids: dict[str, str], texts: dict[str, str], updates: int) -> Asked:
    """Weights change round robin under 16 clients, and now and then what is behind an arm."""
    weights: list[Weights] = [(50, 50, 0), (60, 40, 0), (0, 1, 1), (1, 1, 1), (1, 0, 0)]
    asked, behind = Asked(texts), ""

    def change(client: httpx.Client, updater: Updater, number: int) -> None:
        nonlocal behind
        members = {"x": ids["a" if number % 7 < 4 else "c"], "y": ids["b"]}
        group = weights[number % len(weights)]
        asked.groups[updater.generation + 1] = (group, members["x"])
        done = updater.go(create_group(client, members, metadata(group)))
        asked.updates += [done] if behind == members["x"] else []
        behind = members["x"]

    def answered(count: int) -> bool:
        return len(asked.answers) >= count or bool(asked.wrong)

    with live.client() as client, Client(live.url) as control:
        updater = Updater(control)
        change(client, updater, 0)
        with clients(live, asked):
            for number in range(1, updates):
                change(client, updater, number)
                until(partial(answered, len(asked.answers) + 40))
    asked.check()
    return asked


def test_no_unit_has_two_arms_in_a_phase_and_no_answer_is_mixed(
    live: Server, ids: dict[str, str], texts: dict[str, str]
) -> None:
    asked = storm(live, ids, texts, 12)
    assert len({generation for generation, *_ in asked.answers}) > 6
    assert {arm for _, _, arm, _ in asked.answers} == {"x", "y", "base"}
    assert {digest for *_, digest in asked.answers} == set(texts)


@pytest.mark.long
def test_nor_in_a_long_storm(live: Server, ids: dict[str, str], texts: dict[str, str]) -> None:
    asked = storm(live, ids, texts, 250)
    assert len(asked.answers) > 5_000
    print(f"{len(asked.answers)} answers in {len(asked.groups)} generations")
    for phase, seconds in phase_table(asked.updates).items():
        print(f"{phase}: {seconds}")
