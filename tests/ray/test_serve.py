"""A fleet on a Ray cluster of its own, as a user starts it, under traffic.

`pip install 'stacked[fleet]'`, then `pytest -m long tests/ray`: minutes, as Ray starts many
processes for three replicas.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.postgres import Postgres
from tests.processes import alive, descendants
from tests.serving import free_port, stop
from tests.waiting import until

ray = pytest.importorskip("ray", reason="stacked[fleet] is not installed")

from ray import serve  # noqa: E402

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

START_SECONDS = 600
# What a score.py of this version answers; each is another content.
CODE = "def predict(data, model):\n    return {version!r}\n"


def write_version(directory: Path, version: str) -> Path:
    source = directory / version
    source.mkdir(exist_ok=True)
    (source / "score.py").write_text(CODE.format(version=version))
    return source


@dataclass
class Fleet:
    """A `stacked fleet deploy` that is a cluster, and the file that it was started with."""

    directory: Path
    port: int
    tree: dict[str, Any]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        return self.directory / "fleet.yaml"

    def write(self, **ray_settings: Any) -> None:
        self.tree["ray"] = ray_settings
        self.config.write_text(yaml.safe_dump(self.tree))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "stacked", *words]

    def start(self) -> None:
        command = self.command("fleet", "deploy", str(self.config), "--data-dir", "data")
        with (self.directory / "printed").open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=self.directory, env=self.environment, stdout=output, stderr=output
            )
        until(self.answers, START_SECONDS)

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.directory / "printed").read_text()
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def again(self, **ray_settings: Any) -> None:
        """Deploy the file with other settings on the running cluster."""
        self.write(**ray_settings)
        command = self.command("fleet", "deploy", str(self.config), "--data-dir", "data")
        subprocess.run(command, cwd=self.directory, env=self.environment, check=True)

    def servers(self) -> set[int]:
        """The processes of the replicas' servers."""
        below = descendants(self.process.pid)
        return {pid for (pid, _), line in below.items() if "stacked.ray.child" in line}

    def actors(self) -> list[Any]:
        """Handles of the replicas' actors."""
        names = ray.util.list_named_actors(all_namespaces=True)
        ours = [each for each in names if each["name"].startswith("SERVE_REPLICA::")]
        return [ray.get_actor(each["name"], namespace=each["namespace"]) for each in ours]


@pytest.fixture(scope="module")
def fleet(postgres: Postgres) -> Iterator[Fleet]:
    # Not below pytest's own: the paths of Ray's sockets would be too long.
    directory = Path(tempfile.mkdtemp(prefix="rayfleet-", dir="/tmp"))
    port = free_port()
    tree = {
        "group": {
            "name": "fleet",
            "kind": "HETEROGENEOUS",
            "members": [{"key": "k", "source": str(write_version(directory, "one"))}],
        },
        "models": {"code": True},
        "server": {"port": port, "drain_seconds": 30},
        "storage": {"database": postgres.url(), "contents": str(directory / "contents")},
        "fleet": {"lease_seconds": 10, "hold_seconds": 10},
    }
    environment = os.environ | {"RAY_TMPDIR": str(directory / "r"), "RAY_USAGE_STATS_ENABLED": "0"}
    found = Fleet(directory, port, tree, environment)
    found.write(replicas=3)
    try:
        found.start()
        os.environ["RAY_TMPDIR"] = environment["RAY_TMPDIR"]
        ray.init(address="auto", logging_level="warning", log_to_driver=False)
        yield found
    finally:
        ray.shutdown()
        os.environ.pop("RAY_TMPDIR", None)
        below = descendants(found.process.pid)
        code = stop(found.process)
        shutil.rmtree(directory, ignore_errors=True)
    assert code == 0
    until(lambda: not alive(below))


class Traffic:
    """Clients that send one request after another; every answer is counted."""

    def __init__(self, fleet: Fleet, clients: int = 4) -> None:
        self._url = f"{fleet.url}/predict"
        self._ended = threading.Event()
        self.statuses: Counter[int | str] = Counter()
        self.versions: Counter[str] = Counter()
        self.generations: list[tuple[float, float, int]] = []
        """When a request was sent, when it was answered, and by which generation."""
        self._threads = [threading.Thread(target=self._send) for _ in range(clients)]

    def _send(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._ended.is_set():
                began = time.monotonic()
                try:
                    answer = client.post(self._url, headers={"model-key": "k"}, json={})
                except httpx.TransportError as error:
                    self.statuses[type(error).__name__] += 1
                    continue
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    self.versions[answer.json()] += 1
                    generation = int(answer.headers["model-generation"])
                    self.generations.append((began, time.monotonic(), generation))

    @property
    def backwards(self) -> int:
        """Requests sent after a newer generation had answered one, that got an older one."""
        newest = sorted((done, generation) for _, done, generation in self.generations)
        wrong, at, seen = 0, 0, 0
        for began, _, generation in sorted(self.generations):
            while at < len(newest) and newest[at][0] < began:
                seen = max(seen, newest[at][1])
                at += 1
            wrong += generation < seen
        return wrong

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        until(lambda: self.statuses.total() > 20)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, more: int = 50) -> None:
        """Wait for so many more answers."""
        then = self.statuses.total() + more
        until(lambda: self.statuses.total() >= then)


def update(fleet: Fleet, version: str) -> subprocess.Popen[bytes]:
    """`stacked update --live` to a group of this version, begun."""
    members = [{"key": "k", "source": str(write_version(fleet.directory, version))}]
    fleet.tree["group"]["members"] = members
    fleet.write(**fleet.tree["ray"])
    command = fleet.command("update", "--live", str(fleet.config), "--url", fleet.url)
    return subprocess.Popen(command, cwd=fleet.directory, env=fleet.environment)


def served(fleet: Fleet) -> set[str]:
    """What 30 requests are answered with."""
    sent = [
        httpx.post(f"{fleet.url}/predict", headers={"model-key": "k"}, json={}, timeout=60)
        for _ in range(30)
    ]
    return {answer.json() for answer in sent if answer.status_code == 200}


def test_three_replicas_answer_at_one_address(fleet: Fleet) -> None:
    assert len(fleet.servers()) == 3
    with Traffic(fleet) as traffic:
        traffic.goes_on(200)
    assert set(traffic.statuses) == {200}
    assert set(traffic.versions) == {"one"}


def test_an_update_through_the_one_address_switches_all_of_them(fleet: Fleet) -> None:
    with Traffic(fleet) as traffic:
        assert update(fleet, "two").wait(300) == 0
        traffic.goes_on()
    assert set(traffic.statuses) == {200}
    assert set(traffic.versions) == {"one", "two"}
    assert traffic.backwards == 0
    assert served(fleet) == {"two"}


def test_a_replica_that_is_killed_in_an_update_takes_only_its_own_requests(fleet: Fleet) -> None:
    with Traffic(fleet) as traffic:
        updating = update(fleet, "three")
        ray.kill(fleet.actors()[0])
        updating.wait(300)
        until(lambda: len(fleet.servers()) == 3, START_SECONDS)
        until(lambda: serve.status().applications["fleet"].status == "RUNNING", START_SECONDS)
        traffic.goes_on()
    failed = traffic.statuses.total() - traffic.statuses[200]
    assert failed <= 4  # one of each client was there
    assert traffic.backwards == 0
    wanted = "three" if updating.returncode == 0 else "two"
    assert served(fleet) == {wanted}


def test_from_one_replica_to_three_and_back_nobody_notices(fleet: Fleet) -> None:
    with Traffic(fleet) as traffic:
        for count in (1, 3, 1):
            before = fleet.servers()
            fleet.again(replicas=count)
            until(lambda count=count: len(fleet.servers()) == count, START_SECONDS)
            assert before <= fleet.servers() or before >= fleet.servers()  # none is started again
            traffic.goes_on()
    assert set(traffic.statuses) == {200}
    assert traffic.backwards == 0


def test_more_replicas_are_started_where_requests_wait(fleet: Fleet) -> None:
    """One replica has requests for two."""
    scale = {"min": 1, "max": 2, "requests": 2, "up_after": "1s", "down_after": "5s"}
    fleet.again(replicas=scale)
    with Traffic(fleet, clients=6):
        until(lambda: len(fleet.servers()) == 2, START_SECONDS)
    until(lambda: len(fleet.servers()) == 1, START_SECONDS)
