"""Real servers that share their records, each a process with a file of its own; no engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.models.making import times
from tests.models.remote import Remote, begun, ended, group
from tests.postgres import Postgres
from tests.serving import Server, free_port, stop
from tests.waiting import until


class Replicas:
    """`stacked serve --join` for each name, whose models are `own`, and `a` for all."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory, self._url = directory, url
        self.servers: dict[str, Server] = {}
        self.opened = ExitStack()

    def make(self, name: str, *, bare: bool = False) -> Server:
        """`bare`: its file declares no models."""
        place, port = self._directory / name, free_port()
        place.mkdir()
        factor = float(1 + len(self.servers))
        times(place / "a", 1.0)
        times(place / "own", factor)
        members = [{"key": key, "source": f"./{key}"} for key in ("a", "own")]
        tree = {"server": {"port": port}, "fleet": {"lease_seconds": 2}}
        declared = {"kind": "HETEROGENEOUS", "members": members}
        tree |= {"group": {"name": "g"} | ({} if bare else declared)}
        tree |= {"storage": {"contents": str(self._directory / "contents")}}
        path = place / "fleet.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        options = ("--join", self._url, "--replica", name, "--data-dir", "data")
        command = (sys.executable, "-m", "stacked", "serve", str(path), *options)
        server = Server(f"http://127.0.0.1:{port}", place, command, {})
        self.servers[name] = server
        return server

    def status(self, name: str) -> dict[str, Any]:
        with self.servers[name].client() as http:
            return dict(http.get("/stacked/status").json())

    def fleet(self, name: str) -> dict[str, Any]:
        with self.servers[name].client() as http:
            return dict(http.get("/stacked/fleet").json())

    def remote(self, name: str) -> Remote:
        return Remote(self.opened.enter_context(self.servers[name].client()))

    def deployments(self, name: str) -> list[dict[str, Any]]:
        with self.servers[name].client() as http:
            answer = http.get("/20190101/modelDeployments", params={"compartmentId": "c"})
            return list(answer.json())


@pytest.fixture
def replicas(tmp_path: Path, postgres: Postgres) -> Iterator[Replicas]:
    for schema in ("stacked_g", "fleet_stacked_g"):
        postgres.run(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
    made = Replicas(tmp_path, postgres.url())
    with made.opened as ending:
        ending.callback(lambda: [stop(each.process) for each in made.servers.values()])
        yield made


def answer(server: Remote) -> list[float]:
    """What `own` makes of one."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 1.0, 1.0]}
    found = server.http.post("/v2/models/own/infer", json={"inputs": [tensor]})
    assert found.status_code == 200, found.text
    return list(found.json()["outputs"][0]["data"])[:1]


def test_servers_with_files_that_differ_have_one_deployment_whichever_begins_first(
    replicas: Replicas,
) -> None:
    names = ("one", "two", "three")
    servers = [replicas.make(name) for name in names]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(Server.start, servers))
    shown = [replicas.fleet(name) for name in names]
    assert [each["replica"] for each in shown] == [*names]
    assert len({(each["groupId"], each["generation"]) for each in shown}) == 1
    (deployment,) = {each["id"] for name in names for each in replicas.deployments(name)}
    for name in names:
        (listed,) = replicas.deployments(name)
        assert (listed["id"], listed["lifecycleState"]) == (deployment, "ACTIVE")
        until(lambda name=name: replicas.status(name)["groupId"] == shown[0]["groupId"])

    answers = [answer(replicas.remote(name)) for name in names]
    assert answers[0] in ([1.0], [2.0], [3.0])
    assert answers == answers[:1] * 3

    replicas.make("bare", bare=True).start()
    assert answer(replicas.remote("bare")) == answers[0]

    for server in servers[1:]:  # at least one of them is not the first that came up
        server.process.kill()
        server.process.wait()
        server.start()
    assert any("differs from what the fleet serves" in each.printed() for each in servers[1:])
    assert {each["id"] for name in names for each in replicas.deployments(name)} == {deployment}


@pytest.mark.long  # it waits for the second look of the other one
def test_update_of_a_server_that_was_killed_is_ended_and_nothing_else(replicas: Replicas) -> None:
    servers = [replicas.make(name) for name in ("one", "two")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Server.start, servers))
    one, two = replicas.remote("one"), replicas.remote("two")
    (listed,) = replicas.deployments("one")
    models = [each["id"] for each in two.ask("GET", "/models?compartmentId=c")]
    groups = [group(two, "HETEROGENEOUS", own=id) for id in models]
    begin = begun(one, listed["id"], groups[0])
    servers[0].process.kill()
    assert begin.status_code == 202, begin.text
    assert ended(two, begin.headers["opc-work-request-id"]) in ("SUCCEEDED", "FAILED")
    until(lambda: two.state(listed["id"]) == "ACTIVE")
    servers[0].process.wait()
    servers[0].start()
    for id in groups:
        work = begun(two, listed["id"], id).headers["opc-work-request-id"]
        assert ended(two, work) == "SUCCEEDED"
        assert replicas.fleet("one")["groupId"] == replicas.fleet("two")["groupId"] == id
        assert answer(replicas.remote("one")) == answer(two)
    works = two.ask("GET", "/workRequests?compartmentId=c")
    assert {each["status"] for each in works} <= {"SUCCEEDED", "FAILED"}
