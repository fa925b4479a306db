"""The README's commands and Python, run as they stand against the demo (the port is another)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stacked.errors import StackedError
from tests.demo import reader
from tests.engine.releases import since
from tests.servers import ROOT
from tests.serving import Server

pytestmark = pytest.mark.engine

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every command of the bash blocks; a line that begins at the margin begins a command."""
    lines = "".join(blocks("bash"))
    return [
        command.strip()
        for command in re.split(
            r"\n(?=curl|stacked|mkdir)", re.sub(r"^#.*\n", "", lines, flags=re.M)
        )
        if command.strip()
    ]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what the README puts in /tmp."""
    return tmp_path_factory.mktemp("mine")


def run(command: str, demo: Server, mine: Path) -> str:
    command = command.replace("http://127.0.0.1:8080", demo.url).replace("/tmp/mine", str(mine))
    return reader.run(command, demo, ROOT)[0]


def test_readme_has_commands() -> None:
    assert len(commands()) >= 9


@pytest.mark.parametrize("command", commands(), ids=lambda command: command[:60])
def test_command_works(command: str, demo: Server, mine: Path) -> None:
    said = run(command, demo, mine)
    assert said.strip() or command.startswith("mkdir")
    if command.startswith("curl"):
        assert '"error"' not in said
        assert '"code"' not in said


def test_first_curl_answers_with_the_sql_that_the_readme_shows(demo: Server, mine: Path) -> None:
    answer = json.loads(run(commands()[0], demo, mine))
    assert answer["model"] == "sql"
    shown = re.search(r"contains `(SELECT [^`]+)`", README)
    assert shown is not None
    assert answer["choices"][0]["message"]["content"] == shown[1]


@since(0, 31, "the demo's file has an option of it")
@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.split("\n")[0])
def test_python_runs(block: str, base_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    script.write_text(block, encoding="utf-8")
    environment = {**os.environ, "STACKED_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^pirate sha256:[0-9a-f]{64} \S", done.stdout, flags=re.MULTILINE)


def test_paths_that_the_readme_links_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_every_error_is_in_the_error_reference() -> None:
    reference = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    from stacked.api.errors import status_of

    leaves = [kind for kind in StackedError.tree() if not kind.__subclasses__()]
    for kind in leaves:
        row = re.search(rf"^\| `{kind.code}` \| (\d+) \|", reference, flags=re.MULTILINE)
        assert row is not None, kind.code
        assert int(row[1]) == status_of(kind("x"))
