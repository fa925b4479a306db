"""Two real engines of one fleet: a LIVE update under clients, which get no mixed answer.

pytest -m long tests/deployments/test_fleet_engines.py
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from tests.api.test_live_update import register, swap
from tests.conftest import PROMPT, TinyModels
from tests.deployments.test_fleet_live import Answer, asked, check, clients
from tests.postgres import Postgres
from tests.serving import Server, free_port, stop
from tests.waiting import until

pytestmark = [pytest.mark.engine, pytest.mark.long]


def replica(directory: Path, name: str, url: str, models: TinyModels) -> Server:
    place, port = directory / name, free_port()
    place.mkdir()
    tree = {
        "base": {"model": str(models.base), "key": "base"},
        "group": {"name": "g", "members": [{"key": "n", "source": str(models.adapters["a"])}]},
        "engine": {"max_model_len": 256, "max_loras": 2, "max_cpu_loras": 4},
        "server": {"port": port, "adapter_roots": [str(models.root)]},
        "storage": {"contents": str(directory / "contents")},
        "fleet": {"hold_seconds": 20},
    }
    path = place / "fleet.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    options = ("--join", url, "--replica", name, "--data-dir", "data")
    command = (sys.executable, "-m", "stacked", "serve", str(path), *options)
    return Server(f"http://127.0.0.1:{port}", place, command, {})


def ask(http: httpx.Client) -> Answer:
    body = {"model": "n", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    return asked(http, "/v1/completions", body, lambda answer: answer["choices"][0]["text"])


def test_an_update_of_two_engines_under_clients(
    tmp_path: Path, tiny_models: TinyModels, postgres: Postgres
) -> None:
    postgres.run("CREATE DATABASE of_engines")
    url = postgres.url("of_engines")
    servers = [replica(tmp_path, name, url, tiny_models) for name in ("one", "two")]
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda each: each.start("/health/ready"), servers))
        with servers[0].client() as one, servers[1].client() as two:
            meant: dict[int, object] = {}
            with clients(servers, ask) as answers:
                for name, http in (("b", one), ("c", two), ("b", two)):
                    count = len(answers)
                    until(partial(lambda count: len(answers) > count + 8, count))
                    done = swap(http, {"n": register(http, tiny_models.adapters[name])})
                    assert done["status"] == "SUCCEEDED"
            for each in answers:
                meant.setdefault(each.generation, each.said)
            check(answers, meant)
            texts = [meant[generation] for generation in sorted(meant)]
            assert texts[1] == texts[3]
            assert len({*texts}) == 3
    finally:
        for each in servers:
            stop(each.process)
