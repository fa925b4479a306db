"""The shipped set as a gate and as an evaluation, by the command line, on the shipped adapters."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.servers import CONFIG, ROOT
from tests.serving import Server

pytestmark = pytest.mark.engine

# Of 100; v1 answers a third of all examples right, v2 nine tenths.
COUNT = 6


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The shipped set with its first examples, as a file elsewhere."""
    lines = (ROOT / "evals" / "sql.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "few.jsonl").write_text("\n".join(lines[:COUNT]), encoding="utf-8")
    tree = yaml.safe_load((ROOT / "evals" / "sql.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "few.yaml"
    path.write_text(yaml.safe_dump(tree | {"examples": "few.jsonl", "threshold": 0.6}))
    return path


def stacked(server: Server, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stacked", *map(str, arguments), "--url", server.url]
    return subprocess.run(command, capture_output=True, text=True, timeout=570, check=False)


def next_file(directory: Path, version: str) -> Path:
    """The demo's group with this version of sql."""
    tree = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    for member in tree["group"]["members"]:
        member["source"] = str((CONFIG.parent / member["source"]).resolve())
        if member["key"] == "sql":
            member["source"] = str(ROOT / "adapters" / "sql" / version)
    path = directory / f"{version}.yaml"
    path.write_text(yaml.safe_dump({name: tree[name] for name in ("base", "group")}))
    return path


def test_the_worse_version_is_refused_and_the_better_one_goes_live(
    demo: Server, gate: Path, tmp_path: Path
) -> None:
    found = tmp_path / "found.json"
    scored = stacked(demo, "eval", "sql", "sql-v1", "--set", gate, "--json", found)
    assert scored.returncode == 0, scored.stderr
    better, worse = (each["score"]["mean"] for each in json.loads(found.read_text())["results"])
    assert better >= 0.6 > worse

    refused = stacked(demo, "update", "--live", next_file(tmp_path, "v1"), "--gate", gate)
    assert refused.returncode == 1
    said = " ".join(refused.stderr.split())  # lines are as wide as the terminal
    # The refused content has a second key in the demo, which is named too.
    assert re.search(r"error \[GateFailed\]: sql[^:]*: gate sql, sql: its mean score ", said), said
    (means,) = re.findall(r"gate sql: sql scores (\S+), what is served (\S+),", said)
    # In another batch an answer may change by a token, where two are as probable.
    assert [float(each) for each in means] == pytest.approx([worse, better], abs=0.2)
    assert "scores 0: 'Write one SQL query." in said
    assert "sql: sql refused" in stacked(demo, "status").stdout

    assert stacked(demo, "update", "--live", next_file(tmp_path, "v1")).returncode == 0
    passed = stacked(demo, "update", "--live", next_file(tmp_path, "v2"), "--gate", gate)
    assert passed.returncode == 0, passed.stderr
    assert "sql: sql passed" in stacked(demo, "status").stdout
