"""Files of every version are read, and what is no registry is left alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from stacked.errors import RegistryUnusable
from stacked.registry import DeploymentState, GroupState, Registry, WorkStatus
from stacked.registry.migrations import STEPS, migrate
from stacked.registry.schema import metadata

VERSION_1 = Path(__file__).with_name("version_1.sql")


def shape(connection: sqlite3.Connection) -> dict[str, Any]:
    """Tables, columns, indexes and foreign keys as SQLite understood them."""

    def ask(pragma: str) -> list[tuple[Any, ...]]:
        return connection.execute(f"PRAGMA {pragma}").fetchall()

    found = {}
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    for (table,) in names:
        indexes = sorted(
            (index[1] if index[3] == "c" else "", index[2:], str(ask(f"index_info({index[1]})")))
            for index in ask(f"index_list({table})")
        )
        unnamed = sorted((row[1:], row[0]) for row in indexes)
        keys = sorted(row[2:] for row in ask(f"foreign_key_list({table})"))
        columns = [(row[1], row[2], row[3], row[5]) for row in ask(f"table_info({table})")]
        found[table] = (columns, unnamed, keys)
    return found


def test_migrated_tables_are_those_that_the_queries_use(tmp_path: Path) -> None:
    migrate(tmp_path / "migrated.db", busy_seconds=1)
    engine = create_engine(f"sqlite:///{tmp_path / 'queried.db'}")
    metadata.create_all(engine)
    engine.dispose()
    with (
        closing(sqlite3.connect(tmp_path / "migrated.db")) as migrated,
        closing(sqlite3.connect(tmp_path / "queried.db")) as queried,
    ):
        assert shape(migrated) == shape(queried)
        assert len(shape(migrated)) == len(metadata.tables)


def test_empty_file_becomes_a_registry(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with Registry(path) as registry:
        assert registry.models.list().items == ()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(STEPS),)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_file_of_version_1_is_read(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1.read_text(encoding="utf-8"))
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    with Registry(path) as registry:
        (deployment,) = registry.deployments.list().items
        assert (deployment.state, deployment.generation) == (DeploymentState.ACTIVE, 2)
        assert deployment.configuration == {"engine": {"max_loras": 4}}
        served = registry.groups.get(str(deployment.group_id))
        assert served.state is GroupState.ACTIVE
        assert [member.key for member in served.members] == ["base", "k1", "k2"]
        assert served.custom_metadata == ({"key": "k", "value": "v"},)
        assert served.version == 2
        history = registry.histories.get(str(served.version_history_id))
        assert (history.display_name, history.latest_group_id) == ("line", served.id)
        adapters = registry.models.list(kind="adapter").items
        assert len(adapters) == 3
        assert {model.base_model_id for model in adapters} == {served.base_model_id}
        assert (adapters[0].description, adapters[0].category) == ("", "USER")
        assert (served.kind, served.version_history_name) == ("STACKED", "line")
        assert registry.artifacts.files() == frozenset()
        assert len(registry.deployments.list_members(deployment.id).items) == 3
        request = registry.work_requests.get(str(deployment.work_request_id))
        assert (request.status, request.percent) == (WorkStatus.SUCCEEDED, 100)
        assert request.resources[0].id == deployment.id
        assert registry.work_requests.list_logs(request.id).items[0].message == "staging"
        (failed,) = registry.work_requests.list(status=WorkStatus.FAILED).items
        assert registry.work_requests.list_errors(failed.id).items[0].code == "RankRefused"


def add_color(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE models ADD COLUMN color TEXT NOT NULL DEFAULT 'blue'")


def fail_after_work(connection: sqlite3.Connection) -> None:
    add_color(connection)
    connection.execute("DELETE FROM models")
    raise sqlite3.OperationalError("disk I/O error")


def break_a_reference(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM models")


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()
        return [str(version), *connection.iterdump()]


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    path = tmp_path / "one.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1.read_text(encoding="utf-8"))
    return path


def test_further_step_brings_an_old_file_forward_with_its_rows(version_1: Path) -> None:
    steps = (*STEPS[:1], add_color)
    assert migrate(version_1, busy_seconds=1, steps=steps) == 1
    assert migrate(version_1, busy_seconds=1, steps=steps) == 2
    with closing(sqlite3.connect(version_1)) as connection:
        assert connection.execute("SELECT count(*), min(color) FROM models").fetchone() == (
            4,
            "blue",
        )


@pytest.mark.parametrize(
    ("step", "error"),
    [(fail_after_work, sqlite3.OperationalError), (break_a_reference, RegistryUnusable)],
)
def test_step_that_fails_leaves_the_old_file(version_1: Path, step: Any, error: Any) -> None:
    before = dump(version_1)
    with pytest.raises(error):
        migrate(version_1, busy_seconds=1, steps=(*STEPS[:1], step))
    assert dump(version_1) == before


def test_file_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    Registry(path).close()
    newer = (*STEPS, add_color)
    migrate(path, busy_seconds=1, steps=newer)
    before = dump(path)
    with pytest.raises(RegistryUnusable, match=f"version {len(newer)}.*up to version {len(STEPS)}"):
        Registry(path)
    assert dump(path) == before


def test_database_of_something_else_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE diary (text)")
    before = path.read_bytes()
    with pytest.raises(RegistryUnusable, match="not a registry"):
        Registry(path)
    assert path.read_bytes() == before
