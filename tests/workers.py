"""How two workers share the tests, a plugin of pytest: an engine starts in one of them only.

A file goes to a worker as a whole, so that what its module's fixtures make is made once. Files that
share a server or an engine are one piece of work. One worker begins with the servers, the other
with half of the files, and then with the other engines; what is left goes to whoever is free.
"""

from __future__ import annotations

from typing import Any

import pytest

_PIECES = {
    "servers": (
        "tests/api/test_admission.py",
        "tests/api/test_bearer_server.py",
        "tests/api/test_chat_templates.py",
        "tests/api/test_errors.py",
        "tests/api/test_experiments.py",
        "tests/api/test_fairness.py",
        "tests/api/test_formats.py",
        "tests/api/test_live_update.py",
        "tests/api/test_log_lines.py",
        "tests/api/test_models.py",
        "tests/api/test_results.py",
        "tests/api/test_secrets.py",
        "tests/api/test_server.py",
        "tests/api/test_signed_server.py",
        "tests/api/test_traces.py",
        "tests/clients/test_recorded.py",
        "tests/contract/test_inference_fuzzed.py",
        "tests/contract/test_json_samples.py",
        "tests/contract/test_lifecycle.py",
        "tests/contract/test_operations.py",
        "tests/contract/test_rules.py",
        "tests/contract/test_walk.py",
        "tests/test_cli.py",
        "tests/test_entry_point.py",
    ),
    "engines": (
        "tests/api/test_data_parallel.py",
        "tests/clients/test_clients.py",
        "tests/demo/",
        "tests/deployments/test_gates.py",
        "tests/engine/test_base_untouched.py",
        "tests/engine/test_data_parallel.py",
        "tests/engine/test_speculation.py",
        "tests/engine/test_staging.py",
        "tests/live/",
        "tests/test_inside.py",
        "tests/test_shadow_engine.py",
        "tests/test_stack.py",
    ),
}
_FIXTURES = {
    "servers": {"server", "signed"},
    "engines": {"demo", "guarded", "lab", "stack"},
}


def _piece(path: str) -> str:
    return next((name for name, places in _PIECES.items() if path.startswith(places)), path)


def _turn(piece: str) -> int:
    turns = {"servers": 0, "engines": 2}
    return turns.get(piece, 1 if piece < "tests/contract" else 3)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the pieces in order, and in each what ends a shared engine last.

    Raises UsageError for a test of an engine that is in none.
    """
    for item in items:
        path = item.location[0]
        info = getattr(item, "_fixtureinfo", None)
        known = info.name2fixturedefs if info else {}
        shared = {name for name, those in known.items() if those[-1].scope == "session"}
        for name, engines in _FIXTURES.items():
            if shared & engines and _piece(path) != name:
                raise pytest.UsageError(f"{path}: put it into {name!r} in tests/workers.py")
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _turn(_piece(item.location[0])))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Pieces(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _piece(super()._split_scope(nodeid))

    return Pieces(config, log)
