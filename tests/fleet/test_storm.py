"""The short form of the storm: three real servers, and a fault of each kind at a statement.

The long one is `python -m tests.fleet.storm`.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.fleet.faults import Case
from tests.fleet.kinds import Doubles
from tests.fleet.processes import running_fleet
from tests.fleet.storm import Storm
from tests.postgres import Postgres

CASES = (
    Case("after commit", "kill", True),
    Case("before hold", "cut", True),
    Case("before commit", "stop", True),
    Case("after propose", "silence", True),
)


def test_every_fault_ends_by_itself_and_no_answer_is_wrong_or_of_an_older_group(
    tmp_path: Path, postgres: Postgres
) -> None:
    kind = Doubles(load_seconds=(0.05, 0.2))
    with running_fleet(tmp_path, kind=kind, postgres=postgres) as fleet:
        storm = Storm(fleet, random.Random(16), meeting_seconds=60)
        storm.run(CASES, clients=6)
        assert set(storm.planner.met) == set(CASES)
        assert storm.heard.judge(storm.groups, fleet.digests) == []
        assert len({answer.generation for answer in storm.heard.answers}) > len(CASES)
