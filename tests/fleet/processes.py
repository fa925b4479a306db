"""A real fleet: `stacked serve --join` processes, PostgreSQL behind a way of each, a balancer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
import psycopg
import yaml

from stacked.client import Client, ClientError, Entry
from tests.fleet.kinds import Doubles, Kind
from tests.fleet.network import Balancer, Loop, Way
from tests.postgres import Postgres, running_postgres
from tests.serving import START_SECONDS, free_port, stop
from tests.waiting import until

T = TypeVar("T")

NAME = "storm"
RECORDS = f"stacked_{NAME}"
SCHEMA = f"fleet_{RECORDS}"
KEYS = ("a", "b")
FIRST = {key: f"first-{key}" for key in KEYS}
"""key -> secret, of the group in the replicas' file."""
ENDED = ("SUCCEEDED", "FAILED", "CANCELED")


class Rows(NamedTuple):
    """What the database has of the fleet, in one look."""

    fleet: Mapping[str, Any]
    members: Mapping[str, Mapping[str, Any]]
    """By the replica's name, of which only one can be a member for long."""

    @property
    def at_rest(self) -> bool:
        return self.fleet.get("stage") in ("COMMITTED", "ABORTED")


@dataclass
class Replica:
    """One `stacked serve`, which may be ended and started again."""

    name: str
    port: int
    directory: Path
    config: Path
    way: Way
    database: str
    process: subprocess.Popen[bytes] | None = None
    stopped: bool = False
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=5))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        command = [sys.executable, "-m", "stacked", "serve", str(self.config)]
        command += ["--join", self.database, "--replica", self.name, "--data-dir", "data"]
        with (self.directory / "terminal.txt").open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
            )

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
            self.stopped = number is signal.SIGSTOP

    def end(self) -> None:
        self.way.heal()
        if self.stopped:
            self.signal(signal.SIGCONT)
        if self.process is not None:
            stop(self.process)
        self.http.close()

    def status(self, path: str) -> int:
        """Of an answer to GET; 0 without one."""
        try:
            return self.http.get(self.url + path).status_code
        except httpx.TransportError:
            return 0

    def printed(self) -> str:
        return (self.directory / "terminal.txt").read_text(encoding="utf-8", errors="replace")


@dataclass
class Fleet:
    """Replicas and what is around them."""

    directory: Path
    postgres: Postgres
    loop: Loop
    kind: Kind
    settings: Mapping[str, Any]
    replicas: list[Replica] = field(default_factory=list)
    secrets: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """Of each group: key -> secret."""
    digests: dict[str, str] = field(default_factory=dict)
    """secret -> digest of the content that has it."""
    ends: list[str] = field(default_factory=list)
    """Replicas that ended by themselves, with their code and what they printed."""

    def __post_init__(self) -> None:
        for schema in (SCHEMA, RECORDS):
            self.postgres.run(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        self._rows = psycopg.connect(self.postgres.url(), autocommit=True)
        self._clients: dict[tuple[int, str], Client] = {}

    # -- processes --------------------------------------------------------------------------

    def begin(self, count: int) -> None:
        for secret in FIRST.values():
            self.kind.make(self.directory / secret, secret, False)
        for number in range(count):
            self.replicas.append(self._replica(f"r{number + 1}"))
            self.replicas[-1].start()
            if number == 0:  # the founder, whose group the others serve
                self.until_serving()
        self.until_serving()
        self.balancer = Balancer(self.loop, [each.port for each in self.replicas])
        self.url = f"http://127.0.0.1:{self.balancer.port}"
        until(lambda: all(self.balancer.ready.values()), 20)
        self._learn()

    def _replica(self, name: str) -> Replica:
        directory = self.directory / name
        directory.mkdir()
        way, port = Way(self.loop, self.postgres.port), free_port()
        members = [
            {"key": key, "source": str(self.directory / secret)} for key, secret in FIRST.items()
        ]
        tree = {
            "group": {"name": NAME, "kind": self.kind.group, "members": members},
            **self.kind.settings,
            "storage": {"contents": str(self.directory / "contents")},
            "server": {"port": port, "adapter_roots": [str(self.directory)], "drain_seconds": 5},
            "fleet": dict(self.settings),
        }
        config = directory / "fleet.yaml"
        config.write_text(yaml.safe_dump(tree), encoding="utf-8")
        database = self.postgres.url(port=way.port)
        return Replica(name, port, directory, config, way, database)

    def close(self) -> None:
        for each in self.replicas:
            each.end()
        for client in self._clients.values():
            client.close()
        self._rows.close()

    # -- what is so -------------------------------------------------------------------------

    def rows(self) -> Rows:
        if not self._founded():
            return Rows({}, {})
        query = (
            f"SELECT (SELECT row_to_json(f) FROM {SCHEMA}.fleet f), "
            f"(SELECT json_agg(m) FROM {SCHEMA}.members m)"
        )
        found = self._rows.execute(query).fetchone()  # type: ignore[call-overload]
        assert found is not None
        return Rows(found[0] or {}, {each["name"]: each for each in found[1] or ()})

    def _founded(self) -> bool:
        found = self._rows.execute("SELECT to_regclass(%s)", [f"{SCHEMA}.members"]).fetchone()
        return found is not None and found[0] is not None

    def serving(self) -> bool:
        """Whether every replica is a member, ready, and serves what is committed."""
        rows = self.rows()
        if not rows.at_rest or rows.members.keys() != {each.name for each in self.replicas}:
            return False
        current = {each["generation"] for each in rows.members.values()}
        held = any(each["held"] or each["ready"] for each in rows.members.values())
        if current != {rows.fleet["generation"]} or held:
            return False
        return all(each.status("/health/ready") == 200 for each in self.replicas)

    def until_serving(self, seconds: float = START_SECONDS) -> float:
        """How long it took. A replica that ends meanwhile is started again, as a supervisor does,
        and noted in `ends`.
        """
        began = time.monotonic()
        while not self.serving():
            for each in self.replicas:
                if not each.alive:
                    assert each.process is not None
                    self.ends.append(f"{each.name}: {each.process.returncode}: {each.printed()}")
                    each.start()
            if time.monotonic() - began > seconds:
                printed = "\n".join(each.printed()[-2000:] for each in self.replicas)
                raise AssertionError(f"not all serve in {seconds:g} s: {self.rows()}\n{printed}")
            time.sleep(0.05)
        return time.monotonic() - began

    # -- groups and updates -----------------------------------------------------------------

    def client(self, url: str = "") -> Client:
        """Of the balancer, or of one replica. Each thread has its own: to make one takes time."""
        place = (threading.get_ident(), url or self.url)
        if place not in self._clients:
            self._clients[place] = made = Client(place[1], timeout=10)
            made._http.headers["connection"] = "close"  # each request goes to the next replica
        return self._clients[place]

    def _learn(self) -> None:
        """What is served first; everything is there, and no client."""
        status = self.again(self.client().status)
        self.deployment, first = status["deploymentId"], status["groupId"]
        for each in status["models"]:
            self.digests[f"first-{each['inferenceKey']}"] = each["digest"]
        self.secrets[first] = FIRST

    def group(self, name: str, fails: bool = False) -> str:
        """A group whose every key has another content than in any other group; its id.

        One that `fails` does so in some replicas, after others have it ready.
        """
        secrets = {key: f"{name}-{key}" for key in KEYS}
        entries, client = self._base(), self.client()
        for key, secret in secrets.items():
            place = self.directory / secret
            self.kind.make(place, secret, fails and key == KEYS[0])
            entry = self.again(partial(client.register, str(place)))
            self.digests[secret] = entry.content
            entries.append(Entry(entry.model_id, key, entry.content))
        made = self.again(partial(client.create_group, name, entries, kind=self.kind.group))
        self.secrets[str(made["id"])] = secrets
        return str(made["id"])

    def _base(self) -> list[Entry]:
        """What comes before the members of a group."""
        rows = [row for row in self.again(self.client().models) if row.key == "base"]
        return [Entry(row.model_id, row.key, row.digest) for row in rows]

    def again(self, call: Callable[[], T]) -> T:
        """What it returns. On a busy machine leases end, and nobody is ready for a moment."""
        for _ in range(5):
            with contextlib.suppress(ClientError):
                return call()
            self.until_serving()
        return call()

    def ask(self, url: str, group: str) -> str:
        """Begin an update to a group; the id of its work request. Raises ClientError."""
        return self.client(url).update_live(self.deployment, group)

    def recorded(self) -> tuple[str, list[str]]:
        """The deployment's group by its record, and the work requests that have not ended."""
        http = self.replicas[0].http
        try:
            found = http.get(f"{self.url}/20190101/modelDeployments/{self.deployment}")
            work = http.get(f"{self.url}/20190101/workRequests", params={"limit": 1000})
        except httpx.TransportError:
            return "", []
        if not (found.is_success and work.is_success):  # nobody is ready at this moment
            return "", []
        one, rows = found.json(), work.json()
        details = one["modelDeploymentConfigurationDetails"]["modelGroupConfigurationDetails"]
        open_ = [row["id"] for row in rows if row["status"] in ("ACCEPTED", "IN_PROGRESS")]
        return str(details["modelGroupId"]), open_

    def end_of(self, work: str) -> str:
        """How a work request has ended, as any replica has it: they may be away for a moment."""
        ended: list[str] = []

        def has_ended() -> bool:
            with contextlib.suppress(ClientError):
                ended.append(str(self.client().work(work)["status"]))
            return bool(ended) and ended[-1] in ENDED

        until(has_ended)
        return ended[-1]


@contextmanager
def running_fleet(
    directory: Path,
    count: int = 3,
    *,
    kind: Kind | None = None,
    settings: Mapping[str, Any] | None = None,
    postgres: Postgres | None = None,
) -> Iterator[Fleet]:
    """So many replicas; all of them serve."""
    if postgres is None:
        with (
            running_postgres() as server,
            running_fleet(directory, count, kind=kind, settings=settings, postgres=server) as fleet,
        ):
            yield fleet
        return
    loop = Loop()
    fleet = Fleet(directory, postgres, loop, kind or Doubles(), settings or {})
    try:
        fleet.begin(count)
        yield fleet
    finally:
        fleet.close()
        loop.close()
