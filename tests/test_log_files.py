"""Log files: each bounded, chosen by the ids of what is served, printed as objects on request."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from stacked import log_files
from stacked.errors import RegistryUnusable
from stacked.log_files import LineFile, LogFiles, RequestLines, log_of, older
from stacked.logs import JsonLines
from tests.contract.rig import rig
from tests.waiting import until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "_SECONDS", 0.01)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "logs" / "engine-1.log"
    path.parent.mkdir()
    path.touch()
    return path


class Ids(dict[str, str]):
    """What is served, which a test changes."""

    broken = False

    def __call__(self) -> Mapping[str, str]:
        if self.broken:
            raise RegistryUnusable("closed")
        return self


@contextmanager
def tended(
    files: LogFiles, ids: Callable[[], Mapping[str, str]] | None = None
) -> Iterator[LogFiles]:
    files.begin(Ids() if ids is None else ids)
    try:
        yield files
    finally:
        files.close()


def say(files: LogFiles, text: str) -> None:
    record = logging.LogRecord("stacked.access", logging.INFO, "", 0, text, (), None)
    handler = RequestLines(files, JsonLines() if files._out else logging.Formatter())
    handler.close()  # as vLLM does with every handler, when it sets up its own
    handler.handle(record)


def print_line(engine: Path, line: str) -> None:
    """As a process does whose standard output is the file."""
    with engine.open("a", encoding="utf-8") as file:
        file.write(line)


# -- one file -----------------------------------------------------------------------------------


def test_a_full_file_is_put_aside_and_only_some_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "MOST_BYTES", 100)
    file = LineFile(tmp_path / "a.log")
    for number in range(100):
        file.write(b"%09d\n" % number)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.log", "a.log.1", "a.log.2", "a.log.3", "a.log.4"]
    assert all(path.stat().st_size == 100 for path in tmp_path.iterdir())
    assert older(file.path, 4).read_bytes().startswith(b"%09d" % 50)
    assert file.path.read_bytes().endswith(b"%09d\n" % 99)


def test_a_restart_goes_on_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "MOST_BYTES", 15)
    for number in range(2):
        file = LineFile(tmp_path / "a.log")
        file.write(b"%09d\n" % number)
        file.close()
    assert older(tmp_path / "a.log", 1).read_bytes() == b"%09d\n" % 0


def test_what_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    LineFile(tmp_path / "file" / "a.log").write(b"lost\n")
    full = LineFile(Path("/dev/full"))
    full.write(b"lost\n")
    full.close()


# -- which file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["ocid1.log.oc1.iad.a", "../x", "/etc/x", "..", "\n" + "x" * 999])
def test_a_log_id_names_a_file_of_its_directory(tmp_path: Path, id: str) -> None:
    path = log_of(tmp_path, "access", id)
    assert path.resolve().parent == (tmp_path / "logs" / "access").resolve()
    LineFile(path).write(b"x\n")
    assert path.read_bytes() == b"x\n"


def test_lines_go_to_the_files_of_the_ids(tmp_path: Path, engine: Path) -> None:
    ids = Ids()
    access, predict = log_of(tmp_path, "access", "one"), log_of(tmp_path, "predict", "two")
    with tended(LogFiles(tmp_path, engine), ids) as files:
        say(files, "before")
        print_line(engine, "before\n")
        until(lambda: files._engine.tell() == engine.stat().st_size)
        ids.update(access="one", predict="two")
        until(lambda: files.paths == {"engine": engine, "access": access, "predict": predict})
        say(files, "during")
        print_line(engine, "half ")
        print_line(engine, "and half\n")
        until(lambda: predict.exists())
        ids.broken = True
        print_line(engine, "still\n")
        until(lambda: "still" in predict.read_text())
        ids.broken = False
        ids.clear()
        until(lambda: "predict" not in files.paths)
        say(files, "after")
    assert predict.read_text() == "half and half\nstill\n"
    assert access.read_text() == "during\n"
    assert (tmp_path / "logs" / "access.log").read_text() == "before\nafter\n"


def test_a_deployment_names_the_files_and_may_name_others_while_it_serves(
    tmp_path: Path, engine: Path
) -> None:
    with rig(tmp_path) as server:
        server.stock()
        (id,) = server.ids["modelDeployments"]
        with tended(LogFiles(tmp_path, engine), server.service.log_ids) as files:
            for name in ("one", "two"):
                logs = {kind: {"logId": name, "logGroupId": "g"} for kind in ("access", "predict")}
                server.ask("PUT", f"/modelDeployments/{id}", {"categoryLogDetails": logs})
                chosen = {kind: log_of(tmp_path, kind, name) for kind in logs}
                until(lambda chosen=chosen: files.paths == {"engine": engine, **chosen})
                say(files, f"asked {name}")
                print_line(engine, f"printed {name}\n")
                until(lambda path=chosen["predict"]: path.exists())
            server.retire()
            until(lambda: "predict" not in files.paths)
    for name in ("one", "two"):
        assert log_of(tmp_path, "access", name).read_text() == f"asked {name}\n"
        assert log_of(tmp_path, "predict", name).read_text() == f"printed {name}\n"


# -- the engine's log ---------------------------------------------------------------------------


def test_the_engines_log_is_bounded_while_processes_write_to_it(
    tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "MOST_BYTES", 1000)
    predict = log_of(tmp_path, "predict", "p")
    held = os.open(engine, os.O_WRONLY | os.O_APPEND)  # as file descriptor 1 of a process is
    with tended(LogFiles(tmp_path, engine), Ids(predict="p")) as files:
        until(lambda: "predict" in files.paths)
        for number in range(3):
            os.write(held, b"x" * 1200 + b"\n")
            until(lambda: engine.stat().st_size == 0)
            assert older(engine, 1).stat().st_size == 1201, number
        os.write(held, b"the last\n")
    os.close(held)
    assert engine.read_bytes() == b"the last\n", "no hole at its beginning"
    assert predict.read_text().endswith("the last\n")


# -- standard output ----------------------------------------------------------------------------


def test_every_line_is_printed_as_an_object(tmp_path: Path, engine: Path) -> None:
    reading, writing = os.pipe()
    with tended(LogFiles(tmp_path, engine, writing)) as files:
        say(files, "a request")
        print_line(engine, '{"message": "logged"}\nprinted \x1b[31m by native code\n[1, 2]\n')
    os.close(writing)
    with os.fdopen(reading) as printed:
        trees = [json.loads(line) for line in printed]
    assert sorted(tree["message"] for tree in trees) == [
        "[1, 2]",
        "a request",
        "logged",
        "printed \x1b[31m by native code",
    ]


def test_nobody_has_to_read_standard_output(tmp_path: Path, engine: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with tended(LogFiles(tmp_path, engine, writing), Ids(predict="p")) as files:
        say(files, "a request")
        print_line(engine, "one\n")
        until(lambda: files._out is None)
        print_line(engine, "two\n")
    os.close(writing)
    assert log_of(tmp_path, "predict", "p").read_text() == "one\ntwo\n"
