"""The balancer, and the way to a database, do to a fleet what its storm means them to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import psycopg
import pytest

from tests.fleet.network import Balancer, Loop, Way
from tests.postgres import Postgres
from tests.waiting import until


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def way(loop: Loop, postgres: Postgres) -> Way:
    postgres.run("DROP TABLE IF EXISTS numbers; CREATE TABLE numbers (n int)")
    return Way(loop, postgres.port)


def connect(postgres: Postgres, way: Way) -> psycopg.Connection:
    return psycopg.connect(postgres.url(port=way.port), autocommit=True)


def put(connection: psycopg.Connection, number: int) -> None:
    with connection.transaction():
        connection.execute("INSERT INTO numbers VALUES (%s)", [number])


def stored(postgres: Postgres) -> list[int]:
    return [row[0] for row in postgres.run("SELECT n FROM numbers")]


def test_a_way_that_is_cut_ends_connections_until_it_is_healed(
    postgres: Postgres, way: Way
) -> None:
    with connect(postgres, way) as connection:
        put(connection, 1)
        way.cut()
        until(lambda: not _works(lambda: put(connection, 2)))
        assert not _works(lambda: connect(postgres, way).close())
    way.heal()
    until(lambda: _works(lambda: connect(postgres, way).close()))
    assert stored(postgres) == [1]


def test_what_was_sent_into_a_silent_way_arrives_when_it_is_healed(
    postgres: Postgres, way: Way
) -> None:
    with connect(postgres, way) as connection, ThreadPoolExecutor(1) as pool:
        way.ambush([b"INSERT INTO numbers"], False, way.silence_now)
        asked = pool.submit(put, connection, 1)
        until(lambda: way.silent)
        assert stored(postgres) == []
        way.heal()
        asked.result(30)
    assert stored(postgres) == [1]


@pytest.mark.parametrize("after", [False, True])
def test_a_cut_is_before_a_statement_or_after_its_transaction(
    postgres: Postgres, way: Way, after: bool
) -> None:
    with connect(postgres, way) as connection:
        way.ambush([b"INSERT INTO", b"numbers"], after, way.cut_now)
        with pytest.raises(psycopg.OperationalError):
            put(connection, 1)
    assert stored(postgres) == ([1] if after else [])


def _works(act: Callable[[], object]) -> bool:
    try:
        act()
    except psycopg.OperationalError:
        return False
    return True


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ready = self.server.ready or self.path != "/health/ready"  # type: ignore[attr-defined]
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(str(self.server.server_port).encode())  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def servers() -> Iterator[list[ThreadingHTTPServer]]:
    made = [ThreadingHTTPServer(("127.0.0.1", 0), _Answer) for _ in range(2)]
    for each in made:
        each.ready = True  # type: ignore[attr-defined]
        threading.Thread(target=each.serve_forever, daemon=True).start()
    yield made
    for each in made:
        each.shutdown()
        each.server_close()


def test_a_balancer_asks_those_in_turn_that_are_ready(
    loop: Loop, servers: list[ThreadingHTTPServer]
) -> None:
    ports = [each.server_port for each in servers]
    balancer = Balancer(loop, ports)
    until(lambda: all(balancer.ready.values()))
    url = f"http://127.0.0.1:{balancer.port}"
    assert sorted(int(httpx.get(url).text) for _ in range(4)) == sorted(ports * 2)
    servers[0].ready = False  # type: ignore[attr-defined]
    until(lambda: not balancer.ready[ports[0]])
    assert {int(httpx.get(url).text) for _ in range(4)} == {ports[1]}
    servers[1].ready = False  # type: ignore[attr-defined]
    until(lambda: not balancer.ready[ports[1]])
    assert httpx.get(url).status_code == 503
