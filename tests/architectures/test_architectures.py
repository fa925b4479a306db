"""The table of architectures in docs/adapters.md is what `check` says, and what engines do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures import run, table
from tests.architectures.bases import ARCHITECTURES


def test_check_says_of_each_adapter_what_the_table_says(tmp_path: Path) -> None:
    written = table.codes(table.written())
    found = run.walk(tmp_path, list(ARCHITECTURES), serve=False)
    said = {
        name: {kind: row[kind].code or "" for kind in written.get(name, {})}
        for name, row in found.items()
    }
    assert said == written


@pytest.mark.long
@pytest.mark.engine
def test_every_adapter_is_served_as_by_peft_or_refused_before_an_engine_hears_of_it(
    tmp_path: Path,
) -> None:
    found = run.walk(tmp_path, list(ARCHITECTURES))
    assert table.bad(found) == []
    assert table.markdown(found) == table.written()
