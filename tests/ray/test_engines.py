"""Two replicas with real engines on Ray Serve: a LIVE update, and the death of one in the next.

`pip install 'stacked[fleet]'`, then `pytest -m long tests/ray/test_engines.py`.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import PROMPT, TinyModels
from tests.postgres import Postgres
from tests.ray.cluster import START_SECONDS, Patient, Request, fleet_of
from tests.waiting import until

ray = pytest.importorskip("ray", reason="stacked[fleet] is not installed")

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(2400)]

COMPLETION: Request = (
    "/v1/completions",
    {"model": "k", "prompt": PROMPT, "max_tokens": 12, "temperature": 0},
    lambda answer: answer["choices"][0]["text"],
)


def test_an_update_and_a_kill_in_the_next_one_under_clients(
    tiny_models: TinyModels, postgres: Postgres
) -> None:
    postgres.run("CREATE DATABASE of_ray")
    first, second, third = (tiny_models.adapters[name] for name in "abc")
    tree: dict[str, Any] = {
        "base": {"model": str(tiny_models.base), "key": "base"},
        "group": {"name": "fleet", "members": [{"key": "k", "source": str(first)}]},
        "engine": {"max_model_len": 256, "max_loras": 2, "max_cpu_loras": 4},
        "storage": {"database": postgres.url("of_ray")},
        "fleet": {"lease_seconds": 10, "hold_seconds": 20},
    }
    with fleet_of(tree, replicas=2) as fleet:
        until(lambda: len(fleet.servers()) == 2, START_SECONDS)
        until(fleet.healthy, START_SECONDS)
        with Patient(fleet, COMPLETION, clients=3) as clients:
            assert fleet.update(k=second).wait(START_SECONDS) == 0
            clients.goes_on(20)
            with fleet.in_update(k=third) as updating:
                ray.kill(fleet.actors()[0])
            until(lambda: len(fleet.servers()) == 2, START_SECONDS)
            until(fleet.healthy, START_SECONDS)
            clients.goes_on(20)
    print(clients.statuses, "repeated", clients.repeated, "update", updating.returncode)
    assert set(clients.statuses) == {200}
    assert clients.backwards == 0
    texts = {each.generation: each.said for each in clients.answers}
    assert all(each.said == texts[each.generation] for each in clients.answers)
    assert len(set(texts.values())) == len(texts) == (3 if updating.returncode == 0 else 2)
