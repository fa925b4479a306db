"""A server that processes share: who may write, lost connections, restarts, secrets."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from stacked.errors import DataDirInUse, RegistryUnusable
from stacked.registry import Registry, Shared, postgresql
from stacked.registry.schema import usage
from tests.postgres import PASSWORD, USER, Postgres, running_postgres
from tests.registry.samples import adapter
from tests.waiting import until

ROOT = Path(__file__).parents[2]

HOLDER = """
import sys
from stacked.registry import Registry, Shared
registry = Registry(Shared(*sys.argv[1:]))
registry.claim()
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(postgres: Postgres) -> Shared:
    return postgres.shared()


# -- several processes ----------------------------------------------------------------------


def test_registries_of_one_schema_see_what_the_others_write(place: Shared) -> None:
    with Registry(place) as one, Registry(place) as other:
        one.models.put(adapter(1))
        assert other.models.get(adapter(1).id) == one.models.get(adapter(1).id)


def test_many_processes_begin_at_once_and_the_tables_are_made_once(place: Shared) -> None:
    with ThreadPoolExecutor(6) as pool:
        registries = list(pool.map(lambda _: Registry(place), range(6)))
    for number, registry in enumerate(registries):
        registry.models.put(adapter(number))
    assert len(registries[0].models.list().items) == 6
    for registry in registries:
        registry.close()


def test_a_process_that_starts_waits_longer_than_what_it_does_later(
    place: Shared, postgres: Postgres
) -> None:
    """A report to a fleet that takes a second is given up; a start must not be."""
    hasty = replace(place, silent_seconds=0.1)
    Registry(hasty, busy_seconds=0.1).close()
    number = postgresql.Postgresql(place, 1.0)._number
    waits = (
        "SELECT 1 FROM pg_stat_activity "
        "WHERE wait_event = 'advisory' AND clock_timestamp() - xact_start > '1 s'"
    )
    with psycopg.connect(postgres.url()) as other, ThreadPoolExecutor(1) as pool:
        other.execute(f"SELECT pg_advisory_xact_lock({postgresql._WRITES}, {number})")
        starting = pool.submit(Registry, hasty, busy_seconds=0.1)
        until(lambda: starting.done() or postgres.run(waits))
        other.rollback()
        starting.result(30).close()


def test_writes_of_processes_take_turns(place: Shared) -> None:
    with Registry(place) as one, Registry(place, busy_seconds=0.2) as other:
        with one._database.write():
            with pytest.raises(RegistryUnusable, match="another process is writing"):
                other.models.put(adapter(1))
            assert other.models.list().items == ()
        other.models.put(adapter(1))


def test_schema_is_claimed_once_and_is_free_when_its_holder_was_killed(place: Shared) -> None:
    command = [sys.executable, "-c", HOLDER, place.url, place.schema]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "claimed\n"
        with Registry(place) as registry:
            with pytest.raises(DataDirInUse, match=rf"stacked {holder.pid} on .*127\.0\.0\.1"):
                registry.claim()
            holder.kill()
            holder.wait()
            until(lambda: claimed(registry))
            registry.models.put(adapter(1))


def claimed(registry: Registry) -> bool:
    try:
        registry.claim()
    except DataDirInUse:
        return False
    return True


def test_claim_that_was_lost_is_taken_again_unless_another_had_it_meanwhile(
    place: Shared, postgres: Postgres
) -> None:
    with Registry(place) as one, Registry(place) as other:
        one.claim()
        end_sessions(postgres)
        one.models.put(adapter(1))  # its session was ended, and nobody came between
        with pytest.raises(DataDirInUse):
            other.claim()
        end_sessions(postgres)
        other.claim()
        with pytest.raises(DataDirInUse, match=f"stacked {os.getpid()}"):
            one.models.put(adapter(2))
        end_sessions(postgres)
        with pytest.raises(DataDirInUse, match="restart this one"):
            one.models.put(adapter(2))
        assert [model.id for model in one.models.list().items] == [adapter(1).id]


def test_claim_of_a_machine_that_is_gone_ends_soon(place: Shared) -> None:
    with Registry(place) as registry:
        registry.claim()
        holder = registry._database._store._holder  # type: ignore[union-attr]
        assert holder is not None
        assert holder.exec_driver_sql("SHOW tcp_keepalives_idle").scalar_one() == "10"


def end_sessions(postgres: Postgres) -> None:
    ours = "FROM pg_stat_activity WHERE application_name LIKE 'stacked %'"
    postgres.run(f"SELECT pg_terminate_backend(pid) {ours}")


# -- failures -------------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be reached is not tried again."""
    monkeypatch.setattr(postgresql, "_RESTART_SECONDS", 0.0)


@pytest.fixture(scope="module")
def own() -> Iterator[Postgres]:
    """A server that may be stopped."""
    with running_postgres() as server:
        yield server


def test_restart_of_the_server_is_not_noticed_where_nothing_was_under_way(own: Postgres) -> None:
    with Registry(own.shared()) as registry:
        registry.claim()
        registry.models.put(adapter(1))
        own.stop()
        own.start()
        assert len(registry.models.list().items) == 1
        registry.models.put(adapter(2))


def test_server_that_is_away_is_reported_and_waited_for(
    own: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Registry(own.shared()) as registry:
        registry.claim()
        own.stop()
        with monkeypatch.context() as patch:
            patch.setattr(postgresql, "_RESTART_SECONDS", 0.0)
            for call in (registry.models.list, partial(registry.models.put, adapter(1))):
                with pytest.raises(RegistryUnusable, match="check that it runs"):
                    call()
        monkeypatch.setattr(postgresql, "_RESTART_SECONDS", 60.0)
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(registry.models.put, adapter(1))
            own.start()
            waits.result()
        assert len(registry.models.list().items) == 1


def test_transaction_that_loses_its_server_has_not_happened(own: Postgres) -> None:
    with Registry(own.shared()) as registry:
        with pytest.raises(RegistryUnusable, match="stopping"):
            count_twice(registry, own.stop)
        own.start()
        with registry._database.read() as connection:
            assert connection.execute(usage.select()).all() == []


def count_twice(registry: Registry, between: Callable[[], object]) -> None:
    """One transaction."""
    with registry._database.write() as connection:
        connection.execute(usage.insert().values(ROW))
        between()
        connection.execute(usage.insert().values(ROW))


ROW: dict[str, Any] = {
    "hour": adapter(1).time_created,
    "credential": "c",
    "key": "k",
    "requests": 1,
    "errors": 0,
    "prompt_tokens": 0,
    "generated_tokens": 0,
}


@contextlib.contextmanager
def proxy(port: int) -> Iterator[tuple[int, threading.Event]]:
    """A port that leads to another one, until the event is set: then it swallows what comes."""
    swallow, ended = threading.Event(), threading.Event()

    def carry(source: socket.socket, target: socket.socket) -> None:
        with source, target:
            while not ended.is_set():
                try:
                    data = source.recv(65536)
                except TimeoutError:
                    continue
                except OSError:
                    return
                if not data:
                    return
                if not swallow.is_set():
                    target.sendall(data)

    def accept(listener: socket.socket) -> None:
        while not ended.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            server = socket.create_connection(("127.0.0.1", port))
            for one in (client, server):
                one.settimeout(0.1)
            for pair in ((client, server), (server, client)):
                threads.append(threading.Thread(target=carry, args=pair))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        threads = [threading.Thread(target=accept, args=(listener,))]
        threads[0].start()
        try:
            yield listener.getsockname()[1], swallow
        finally:
            ended.set()
            for thread in threads:
                thread.join()


def test_server_that_is_silent_is_given_up(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "_PING_SECONDS", 0.5)
    with proxy(postgres.port) as (port, swallow):
        url = f"{postgres.url(port=port)}?connect_timeout=2"
        place = postgres.shared(url=url, silent_seconds=1.0)
        with Registry(place) as registry:
            registry.models.put(adapter(1))
            with pytest.raises(RegistryUnusable):  # in the middle of a transaction
                count_twice(registry, swallow.set)
            with pytest.raises(RegistryUnusable):  # and at the beginning of one
                registry.models.list()
            swallow.clear()
            assert len(registry.models.list().items) == 1
            registry.models.put(adapter(2))


def test_connections_that_are_all_in_use_are_reported(postgres: Postgres) -> None:
    with Registry(postgres.shared(connections=1), busy_seconds=0.1) as registry:
        full = pytest.raises(RegistryUnusable, match=r"storage\.connections")
        with registry._database.read(), full:
            registry.models.list()
        assert registry.models.list().items == ()


def test_server_without_a_free_session_is_reported(own: Postgres, at_once: None) -> None:
    with contextlib.ExitStack() as sessions:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                sessions.enter_context(psycopg.connect(own.url()))
        with pytest.raises(RegistryUnusable, match="too many clients"):
            Registry(own.shared())


def test_server_that_may_only_be_read_is_reported(postgres: Postgres) -> None:
    place = postgres.shared()
    Registry(place).close()
    read_only = f"{place.url}?options=-c%20default_transaction_read_only%3Don"
    with Registry(replace(place, url=read_only)) as registry:
        assert registry.models.list().items == ()
        with pytest.raises(RegistryUnusable, match="address of the primary"):
            registry.models.put(adapter(1))


# -- addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda url: url.replace("127.0.0.1", "127.0.0.1:1:2"),
        lambda url: url.replace("postgresql:", "mysql:"),
        lambda url: url.replace("127.0.0.1", "no.such.host.invalid"),
        lambda url: url.replace(f"{USER}:", "nobody:"),
        lambda url: url.replace("the", "a"),
        lambda url: f"{url}?sslmode=verify-full",
        lambda url: f"{url}?nonsense={PASSWORD}",
        lambda url: f"{url}_absent?password={PASSWORD}",
        lambda url: url.replace("://", ":/"),
        lambda url: url.rpartition("@")[0],
    ],
)
def test_password_is_in_no_error(postgres: Postgres, at_once: None, change: Any) -> None:
    place = postgres.shared(url=change(postgres.url()))
    with pytest.raises(RegistryUnusable) as raised:
        Registry(place)
    error: BaseException | None = raised.value
    said = ""
    while error is not None:
        said += f"{error} {error!r}"
        error = error.__cause__
    assert PASSWORD not in said + repr(place)
    assert "pass%2Fword" not in said + repr(place)


def test_address_without_a_password_takes_it_from_where_libpq_does(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://{USER}@127.0.0.1:{postgres.port}/postgres"
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    Registry(postgres.shared(url=url)).close()
    monkeypatch.delenv("PGPASSWORD")
    file = tmp_path / "passwords"
    file.write_text(f"*:*:*:*:{PASSWORD.replace(':', chr(92) + ':')}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    Registry(postgres.shared(url=url)).close()


def test_what_the_address_says_of_a_connection_wins(postgres: Postgres) -> None:
    url = f"{postgres.url()}?application_name=mine&keepalives_idle=77"
    with Registry(postgres.shared(url=url)) as registry, registry._database.read() as connection:
        session: Any = connection.connection.driver_connection
        assert session.info.get_parameters()["keepalives_idle"] == "77"
        assert session.info.get_parameters()["application_name"] == "mine"


def test_without_the_driver_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(RegistryUnusable, match=r"pip install 'stacked\[postgres\]'"):
        Registry(Shared("postgresql://127.0.0.1/nothing", "s"))
