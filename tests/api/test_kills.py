"""`kill -9` of a server in each phase of a LIVE update, 21 times: the committed group serves again.

Minutes of starting engines, so `-m long` asks for it; `test_live_update` kills once in every run.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from stacked.steps import Phase
from tests import tiny
from tests.api.aftermath import API, Held, check_records, check_store, got, kill
from tests.api.test_live_update import register, swap, update
from tests.conftest import PROMPT, TinyModels, complete
from tests.serving import Server, free_port, serving

pytestmark = pytest.mark.long

KEYS = [f"k{number}" for number in range(8)]
KILLS = 3
PHASES = ["planning", "staging", "verifying", "committing", "switching", "draining", "removing"]


def write_config(
    directory: Path,
    models: TinyModels,
    port: int,
    members: dict[str, str],
    drain_seconds: float = 20,
) -> Path:
    tree = {
        "base": {"model": str(models.base), "key": "base"},
        "group": {
            "name": "live",
            "members": [
                {"key": key, "source": str(models.adapters[name])} for key, name in members.items()
            ],
        },
        "engine": {"max_model_len": 1024, "max_loras": 3, "max_cpu_loras": 12},
        "server": {
            "port": port,
            "drain_seconds": drain_seconds,
            "adapter_roots": [str(models.base.parent)],
        },
    }
    path = directory / "live.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


class Life:
    """A server that is killed and started again, on the same directory and port."""

    def __init__(self, directory: Path, models: TinyModels) -> None:
        self.directory = directory
        self.port = free_port()
        first = {key: key + "a" for key in KEYS}
        self.config = write_config(directory, models, self.port, first, drain_seconds=60)
        self.hits: Counter[str] = Counter()
        self._open = ExitStack()
        self.server = self._start()
        with self.server.client() as client:
            ids = {name: register(client, path) for name, path in models.adapters.items()}
            self.groups: dict[str, dict[str, str]] = {}
            self.answers: dict[str, dict[str, str]] = {}
            for version in "ab":
                members = {key: ids[key + version] for key in KEYS}
                assert swap(client, members)["status"] == "SUCCEEDED"
                group_id = Held.of(client).group_id
                self.groups[group_id] = members
                self.answers[group_id] = {key: complete(client, key) for key in (*KEYS, "base")}
        one, other = self.answers.values()
        assert all(one[key] != other[key] for key in KEYS)

    def _start(self) -> Server:
        arguments = (str(self.config), "--data-dir", "data")
        running: AbstractContextManager[Server] = serving(
            *arguments, directory=self.directory, port=self.port, ends_with=-signal.SIGKILL
        )
        return self._open.enter_context(running)

    def again(self) -> None:
        """Look at what the killed server left, and start another on it."""
        self._open.close()
        check_store(self.directory / "data")
        self.server = self._start()

    @contextmanager
    def commits_held_up(self) -> Iterator[None]:
        """Nobody can write the records meanwhile, as if the disk took its time."""
        (records,) = (self.directory / "data").rglob("registry.sqlite")
        with closing(sqlite3.connect(records, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield

    def close(self) -> None:
        kill(self.server)
        self._open.close()


@pytest.fixture(scope="module")
def life(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    directory = tmp_path_factory.mktemp("kills")
    adapters = {
        key + version: tiny.build_adapter(directory / (key + version), tiny_models.base, seed)
        for seed, (key, version) in enumerate(((k, v) for k in KEYS for v in "ab"), start=100)
    }
    # The server may read adapters below the parent of its base.
    (directory / "base").symlink_to(tiny_models.base)
    life = Life(directory, TinyModels(directory / "base", adapters))
    yield life
    life.close()
    print(f"killed in: {dict(life.hits)}; {life.hits.total()} kills")


@pytest.mark.parametrize("kill_number", range(KILLS))
@pytest.mark.parametrize("phase", PHASES)
def test_server_killed_in_a_phase_serves_the_committed_group_again(
    life: Life, phase: str, kill_number: int
) -> None:
    chance = random.Random(f"{phase} {kill_number}")
    if life.server.process.poll() is not None:  # the test before this one has failed
        life.again()
    with life.server.client() as client:
        before = Held.of(client)
        wanted_id = next(each for each in life.groups if each != before.group_id)
        with ExitStack() as held_up:
            if phase in ("switching", "draining"):
                held_up.enter_context(streaming(life.server, KEYS[0]))
            work_id = update(client, wanted_id)
            wait_for_phase(client, work_id, "verifying" if phase == "committing" else phase)
            if phase == "committing":
                held_up.enter_context(life.commits_held_up())
                time.sleep(2)  # the rest of the canaries takes a fraction of it
            time.sleep(chance.uniform(0.0, 0.3 if phase == "draining" else 0.01))
            kill(life.server)
    life.again()
    with life.server.client() as client:
        committed = check_records(client, before, wanted_id, work_id)
        life.hits[last_phase(client, work_id) if phase != "committing" else phase] += 1
        assert committed == (phase in ("switching", "draining", "removing"))
        served = wanted_id if committed else before.group_id
        for key, text in life.answers[served].items():
            assert complete(client, key) == text


def wait_for_phase(client: httpx.Client, work_id: str, phase: str) -> None:
    """Return when the log says so; at once for the first phase, which the acceptance begins."""
    deadline = time.monotonic() + 60
    while phase != PHASES[0] and phase not in phases(client, work_id):
        assert time.monotonic() < deadline, phases(client, work_id)


def phases(client: httpx.Client, work_id: str) -> list[str]:
    """The phases that the log of an update tells of, in order."""
    lines = got(client, f"{API}/workRequests/{work_id}/logs?limit=1000")
    begun = {line.get("step") for line in lines}
    return [phase for phase in PHASES if Phase(phase).name in begun]


def last_phase(client: httpx.Client, work_id: str) -> str:
    return (phases(client, work_id) or ["before the first"])[-1]


@contextmanager
def streaming(server: Server, key: str) -> Iterator[None]:
    """Long answers of `key`, one after the other, until the server is killed, which cuts one.

    One alone may be whole before a busy machine has staged the group.
    """
    body = {"prompt": PROMPT, "max_tokens": 1000, "ignore_eos": True, "model": key, "stream": True}
    began = threading.Event()
    ended: list[str] = []

    def read() -> None:
        while not ended:
            try:
                with (
                    server.client() as client,
                    client.stream("POST", "/v1/completions", json=body) as response,
                ):
                    for _ in response.iter_lines():
                        began.set()
                    if response.status_code != 200:
                        ended.append("refused")
            except httpx.TransportError:
                ended.append("cut")

    reader = threading.Thread(target=read)
    reader.start()
    assert began.wait(60)
    yield
    reader.join(60)
    assert ended == ["cut"]
