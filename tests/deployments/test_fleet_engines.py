"""The storm over two real engines: each answer is its adapter's, by transformers, and never older.

pytest -m long -s tests/deployments/test_fleet_engines.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.conftest import TinyModels
from tests.fleet.faults import Case
from tests.fleet.kinds import TinyEngines
from tests.fleet.processes import running_fleet
from tests.fleet.storm import Storm
from tests.postgres import Postgres

pytestmark = [pytest.mark.engine, pytest.mark.long]

CASES = (
    Case("at rest", "kill"),
    Case("after propose", "cut", True),
    Case("preparing", "kill", True),
    Case("prepared", "stop"),
    Case("before hold", "silence", True),
    Case("before its hold", "cut"),
    Case("held", "kill"),
    Case("before commit", "stop", True),
    Case("after commit", "cut", True),
    Case("before its switch", "stop"),
    Case("switched", "kill", True),
    Case("joining", "cut"),
)
# Both engines and all clients have two cores.
SETTINGS = {"lease_seconds": 3, "hold_seconds": 5}


def test_every_fault_of_two_engines_ends_by_itself_and_no_answer_is_wrong_or_of_an_older_group(
    tmp_path: Path, tiny_models: TinyModels, postgres: Postgres
) -> None:
    kind = TinyEngines(tiny_models.base)
    with running_fleet(tmp_path, 2, kind=kind, settings=SETTINGS, postgres=postgres) as fleet:
        storm = Storm(fleet, random.Random(16), meeting_seconds=60)
        storm.run(CASES, clients=3)
        found = storm.figures()
        del found["never_met"]  # all that is not in CASES
        print(json.dumps(found, indent=2))
        assert found["violations"] == []
        assert found["faults"] >= len(CASES) - 2, "a step of some milliseconds may not be met"
        assert found["generations_that_answered"] > len(CASES)
