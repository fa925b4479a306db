"""The short form of the storm: a real server, both kinds of groups, every answer compared."""

from __future__ import annotations

from pathlib import Path

from tests.models import storm


def test_every_answer_is_of_the_version_that_it_names(tmp_path: Path) -> None:
    for kind, figures in storm.run(tmp_path, updates=4, clients=8).items():
        assert figures["violations"] == [], kind
        assert figures["updates"] == 4
        assert figures["generations_that_answered"] > 3
        assert min(figures["answers_by_key"].values()) > 0
        assert figures["after"]["processes"] == figures["before"]["processes"] > 0
