"""The story of docs/experiments.md, run as it stands against the demo, with fewer questions."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.demo.reader import run
from tests.servers import ROOT
from tests.serving import Server

pytestmark = pytest.mark.engine

TEXT = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
STORY = TEXT.split("## A whole story\n")[1].split("\n## ")[0]
# Enough for the threshold of the gates to be certain with these adapters.
EXAMPLES = 12


def steps() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", STORY, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with short evaluation sets, whose files accept the demo's engine as it is."""
    place = tmp_path_factory.mktemp("story")
    (place / "adapters").symlink_to(ROOT / "adapters")
    for name in ("configs", "evals", "examples"):
        shutil.copytree(ROOT / name, place / name)
    for path in place.rglob("*.yaml"):
        path.write_text(path.read_text(encoding="utf-8").split("\nengine:")[0] + "\n")
    lines = (ROOT / "evals" / "sql.jsonl").read_text(encoding="utf-8").splitlines()
    (place / "evals" / "sql.jsonl").write_text("\n".join(lines[:EXAMPLES]) + "\n")
    return place


@pytest.fixture
def printed(demo: Server, checkout: Path) -> Iterator[dict[str, str]]:
    """What each step printed, by its command; the demo serves its own group again at the end."""
    said = {}
    try:
        for step in steps():
            # The demo's server takes the place of one that the reader starts.
            command = step.replace("stacked serve", "stacked update --live")
            said[step] = "".join(run(command, demo, checkout, COLUMNS="160"))
        yield said
    finally:
        run(f"stacked update --live {ROOT}/configs/demo.yaml", demo, checkout)


def test_the_story_ends_with_the_better_adapter(
    printed: dict[str, str], demo: Server, checkout: Path
) -> None:
    gate, tried, tried_by_users, shown, promoted, listed = [*printed.values()][1:]
    assert "GateFailed" in gate
    assert re.search(r"gate sql, sql: .*0\.000", gate)
    assert "gate sql-v2: sql-v2 scores" in tried
    assert "winner: sql-v2" in tried_by_users
    assert "sql-v2" in shown
    assert "sql-v2" in promoted
    assert "sql" in listed
    lines = (checkout / "evals" / "sql.jsonl").read_text(encoding="utf-8").splitlines()
    body = {**json.loads(lines[0]), "model": "sql", "temperature": 0, "max_tokens": 64}
    del body["expected"]
    arms = set()
    for user in ("user-1", "user-2", "user-3", "user-4", "user-5"):
        answer = httpx.post(
            f"{demo.url}/v1/chat/completions",
            json=body,
            headers={"experiment-unit": user},
            timeout=300,
        ).raise_for_status()
        arms.add(answer.headers["model-arm"])
    assert arms == {"sql-v2"}
