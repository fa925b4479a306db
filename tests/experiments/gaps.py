"""What a gated update costs the tokens of streams, with this code and with other states of it.

    git worktree add --detach BEFORE 467be7b
    python -m tests.experiments.gaps BEFORE . --examples 12 --rounds 2

Each state serves SmolLM2 in turn. Streams of one adapter run while another one is updated, with a
gate of the first examples of evals/sql.yaml. The gaps between their tokens are compared with those
of the seconds before.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from stacked.bases import default_data_dir
from stacked.bench.clients import Streams
from stacked.bench.figures import gaps_within, quantile
from stacked.bench.processes import off_engine_core
from stacked.bench.server import ours, running
from stacked.client import Client, entries_of
from stacked.config import Design, load_set
from stacked.engine.cpu_affinity import hand_over_soon

ROOT = Path(__file__).parents[2]
ADAPTERS = ROOT / "adapters"
_SETTLE_SECONDS = 2.0
_STEADY_SECONDS = 8.0
_LISTEN_SECONDS = 0.3  # a gap that the update's end began may end after it


def tree_of(engine: dict[str, Any]) -> dict[str, Any]:
    members = {"sql": "sql/v1", "pirate": "pirate/v1"}
    return {
        "base": {"model": "smollm2-135m-instruct", "key": "base"},
        "group": {
            "name": "first",
            "members": [
                {"key": key, "source": str(ADAPTERS / place)} for key, place in members.items()
            ],
        },
        "engine": {"max_model_len": 2048, "max_loras": 4, **engine},
        "server": {"runtime_updates": True, "adapter_roots": [str(ADAPTERS)]},
    }


def gated_group(client: Client, count: int) -> str:
    """The served group with another `sql`, and a gate; its id."""
    gate = load_set(ROOT / "evals" / "sql.yaml")
    gate = gate.model_copy(update={"examples": gate.examples[:count]})
    metadata = Design(gates=(gate,)).as_metadata()
    items = [{"key": name, "value": value} for name, value in metadata.items()]
    served = entries_of(client.group(client.status()["groupId"]))
    others = [each for each in served if each.key != "sql"]
    new = client.register(str(ADAPTERS / "sql/v2"), key="sql")
    made = client.create_group("gated", [*others, new], details={"customMetadataList": items})
    return str(made["id"])


def update(client: Client, group: str) -> None:
    work = client.update_live(client.status()["deploymentId"], group)
    status = "ACCEPTED"
    for state, _ in client.follow(work, 0.5):
        status = state["status"]
    assert status == "SUCCEEDED", status


def measure(state: Path, given: argparse.Namespace, directory: Path) -> None:
    """The gaps of the streams of one server."""
    data = directory / "data"
    data.mkdir()
    (data / "bases").symlink_to(default_data_dir() / "bases")
    command = ours(tree_of(json.loads(given.engine)), directory, data)
    with (
        running(command, directory, {"PYTHONPATH": str(state)}) as url,
        Client(url) as client,
    ):
        group = gated_group(client, given.examples)
        streams = Streams(url, "pirate", given.streams, 1900)
        with streams, off_engine_core(_SETTLE_SECONDS):
            began = time.monotonic()
            time.sleep(_STEADY_SECONDS)
            asked = time.monotonic()
            update(client, group)
            ended = time.monotonic()
            time.sleep(_LISTEN_SECONDS)
    steady = gaps_within(streams.arrivals, (began, asked))
    during = gaps_within(streams.arrivals, (asked, ended))
    p99 = quantile(steady, 0.99)
    print(
        f"{state}: update {ended - asked:.0f} s\n  steady {shown(steady)}\n  gated  {shown(during)}"
    )
    ratios = [quantile(during, 0.99) / p99, max(during) / p99]
    print("  to steady p99: p99 {:.2f}, worst {:.2f}".format(*ratios), flush=True)


def shown(gaps: Sequence[float]) -> str:
    parts = median(gaps), quantile(gaps, 0.95), quantile(gaps, 0.99), max(gaps)
    figures = "median {:.0f}, p95 {:.0f}, p99 {:.0f}, worst {:.0f} ms"
    return f"{len(gaps)} gaps, " + figures.format(*(1000 * part for part in parts))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("states", type=Path, nargs="+")
    options.add_argument("--examples", type=int, default=24)
    options.add_argument("--streams", type=int, default=3)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--engine", default="{}", help="engine options, as JSON")
    given = options.parse_args()
    states = [state.resolve() for state in given.states]
    gc.collect()
    gc.freeze()  # a garbage collection here would look like a late token,
    hand_over_soon()  # and so would another thread's time slice
    for _ in range(given.rounds):
        for state in states:
            with tempfile.TemporaryDirectory() as place:
                os.chdir(place)  # `python -m` looks for the package here first
                measure(state, given, Path(place))


if __name__ == "__main__":
    main()
