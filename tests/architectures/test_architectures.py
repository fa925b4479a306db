"""The table of architectures in docs/adapters.md is what `check` says, and what engines do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.architectures import run, table
from tests.architectures.bases import ARCHITECTURES


def test_check_says_of_each_adapter_what_the_table_says(tmp_path: Path) -> None:
    written = table.codes(table.written())
    found = run.walk(tmp_path, list(ARCHITECTURES), serve=False, processes=1)
    said = {
        name: {kind: row[kind].code or "" for kind in written.get(name, {})}
        for name, row in found.items()
    }
    assert said == written


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.timeout(2400)
def test_every_adapter_is_served_as_by_peft_or_refused_before_an_engine_hears_of_it(
    tmp_path: Path,
) -> None:
    found = run.walk(tmp_path, list(ARCHITECTURES))
    assert table.bad(found) == []
    assert table.markdown(found) == table.written()


@pytest.mark.parametrize(
    ("events", "shown"),
    [
        ([("check", ["", ""]), ("begin", None), ("served", 1e-6)], "served"),
        ([("check", ["", ""]), ("begin", None), ("served", None)], "wrong"),
        ([("check", ["", ""]), ("begin", None), ("served", 0.1)], "wrong"),
        ([("check", ["", ""]), ("begin", None), ("refused", "no")], "check yes, engine no"),
        ([("check", ["", ""]), ("begin", None), ("died", "no")], "engine died"),
        ([("check", ["", ""]), ("begin", None)], "engine died"),
        ([("check", ["C", "no"]), ("begin", None), ("served", 1e-6)], "refused needlessly: C"),
        ([("no effect", None), ("check", ["C", ""]), ("served", 1e-6)], "refused: C"),
        ([("check", ["C", "no"]), ("begin", None), ("served", None)], "refused: C"),
        ([("check", ["C", "no"]), ("begin", None), ("refused", "no")], "refused: C"),
    ],
)
def test_cell_tells_what_check_and_engine_make_of_an_adapter(
    events: list[tuple[str, Any]], shown: str
) -> None:
    whole = [("base", "served", 1e-6), *(("all", *event) for event in events)]
    row = table.rows(json.dumps(dict(zip(_KEYS, ("llama", *each), strict=True))) for each in whole)
    assert str(row["llama"]["all"]) == shown
    assert bool(table.bad(row)) == shown.startswith(table.BAD)


_KEYS = ("architecture", "adapter", "event", "value")


def test_adapters_of_a_base_that_differs_are_not_judged() -> None:
    lines = [("base", "served", None), ("all", "check", ["", ""]), ("all", "served", None)]
    row = table.rows(json.dumps(dict(zip(_KEYS, ("llama", *each), strict=True))) for each in lines)
    assert str(row["llama"]["all"]) == "base differs"
    assert not table.bad(row)
