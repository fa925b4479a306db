"""The process of a replica, without Ray: a real server of a score.py."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from stacked.config import Listener, RayConfig, load_server
from stacked.errors import EngineStartFailed
from stacked.ray.child import Given, configured
from stacked.ray.process import Place, Server
from tests.processes import descendants, wait_until_gone
from tests.waiting import until

WORDS = Path(__file__).parents[2] / "configs" / "models" / "words"


def write_config(directory: Path, **tree: object) -> Path:
    path = directory / "fleet.yaml"
    group = {
        "name": "words",
        "kind": "HETEROGENEOUS",
        "members": [{"key": "w", "source": str(WORDS)}],
    }
    path.write_text(yaml.safe_dump({"group": group, "models": {"code": True}, **tree}))
    return path


def ready(server: Server) -> bool:
    server.check()
    try:
        url = f"http://{server.address[0]}:{server.address[1]}/health/ready"
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_places_are_of_one_each_and_the_first_free_is_taken(tmp_path: Path) -> None:
    first, second = Place.take(tmp_path), Place.take(tmp_path)
    assert (first.number, second.number) == (0, 1)
    assert (first.directory / "bases").readlink() == tmp_path / "bases"
    os.close(first.lock)
    third = Place.take(tmp_path)
    assert third.directory == first.directory
    for place in (second, third):
        os.close(place.lock)


def test_a_replica_has_the_file_s_settings_but_for_where_it_listens(tmp_path: Path) -> None:
    tls = {"cert": "c.pem", "key": "k.pem"}
    auth = {"bearer": True}
    server = {"host": "0.0.0.0", "tls": tls, "auth": auth, "health_port": 9001}
    path = write_config(tmp_path, server=server, fleet={}, storage={"database": "postgresql://h/n"})
    given = Given(str(path), "/data", "/data/replicas/0", "abc", (3, 4), 5)
    found = configured(load_server(path), given, ("127.0.0.1", 9090))
    assert found.server.metrics == Listener(host="127.0.0.1", port=9090)
    assert found.server.tls is None
    assert found.server.health_port is None
    assert found.server.auth.directory == "/data/keys"
    assert found.server.auth.bearer
    assert found.server.host == "0.0.0.0"
    assert found.fleet is not None
    assert found.fleet.replica == "abc"


def test_a_server_answers_says_its_metrics_and_stops_when_asked(tmp_path: Path) -> None:
    server = Server(str(write_config(tmp_path)), tmp_path / "data", "one", ("127.0.0.1", 0))
    until(lambda: ready(server))
    base, metrics = (f"http://{host}:{port}" for host, port in (server.address, server.metrics))
    answer = httpx.post(f"{base}/predict", headers={"model-key": "w"}, json={"text": "be be or"})
    assert answer.json() == {"prediction": [["be", 2], ["or", 1]]}
    told = httpx.get(f"{metrics}/metrics", params={"name[]": "stacked_adapters"}).text
    assert "stacked_adapters 1.0" in told
    assert "stacked_generation" not in told
    asyncio.run(server.stop(60))
    with pytest.raises(EngineStartFailed, match="ended with 0"):
        server.check()
    with socket.socket() as sock:
        assert sock.connect_ex(server.address) != 0


def test_it_is_said_why_a_server_did_not_start(tmp_path: Path) -> None:
    path = write_config(tmp_path, models={"code": False})
    server = Server(str(path), tmp_path / "data", "one", ("127.0.0.1", 0))
    with pytest.raises(EngineStartFailed, match=r"NotAllowed\ngroup\.members"):
        until(lambda: ready(server))


# The other end of its pipe closes, however this process ends.
ACTOR = """
import sys, time
from pathlib import Path
from stacked.ray.process import Server
server = Server(sys.argv[1], Path(sys.argv[2]), "one", ("127.0.0.1", 0))
print(*server.address, flush=True)
time.sleep(600)
"""


def test_a_server_ends_with_its_actor_and_its_place_is_free(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    command = [sys.executable, "-c", ACTOR, str(path), str(tmp_path / "data")]
    actor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert actor.stdout is not None
    host, port = actor.stdout.readline().split()
    url = f"http://{host}:{port}/health/ready"

    def serves() -> bool:
        try:
            return httpx.get(url, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    until(serves)
    below = descendants(actor.pid)
    assert Place.take(tmp_path / "data").number == 1
    actor.send_signal(signal.SIGKILL)
    actor.wait()
    wait_until_gone(below)
    # The last of its threads may still hold files when the first has ended.
    until(lambda: Place.take(tmp_path / "data").number == 0)


TOLD = """
import threading, time
from stacked.ray.child import FromActor
told = FromActor()
threading.Thread(target=told.follow, daemon=True).start()
while told.ray is None:
    time.sleep(0.01)
print(told.ray.replicas, told.ray.most, flush=True)
time.sleep(600)
"""


def test_a_server_learns_what_is_deployed_as_long_as_its_actor_lives() -> None:
    command = [sys.executable, "-c", TOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{RayConfig(replicas=3, most=5).model_dump_json()}\n".encode())
        child.stdin.flush()
        assert child.stdout.readline() == b"3 5\n"
        child.stdin.close()
        assert child.wait(60) == 1
