"""What requests cost against another state of Stacked: all servers alive, each loaded in turn.

    git worktree add --detach BEFORE 8ae185e
    python -m tests.api.against BEFORE --base tiny --clients 16,64 --requests 15 --rounds 5

The load is `stacked bench online`'s. Servers of this state have bearer tokens with both rates,
limits and fairness. There are two of each state: two processes of one state differ by up to 8 %.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from stacked.bases import default_data_dir
from stacked.bench.children import Talk, talking
from stacked.bench.load import _DRIVER, FIGURES, Lengths, Load, loads_of, run_load, words
from stacked.bench.server import ours, running
from stacked.bench.subject import Requested, Subject, prepare
from stacked.keys import Rights, create
from tests.fairness.measure import Quiet

HERE = Path(__file__).parents[2]
SHOWN = ("request_throughput", "median_ttft_ms", "median_tpot_ms", "p99_ttft_ms")
RATES = Rights(requests_per_minute=10**7, tokens_per_minute=10**9)


class Side:
    """One server of a state, and a load generator for it."""

    def __init__(
        self, subject: Subject, state: Path, place: Path, stack: contextlib.ExitStack
    ) -> None:
        place.mkdir()
        tree, key = subject.tree(subject.options()), "none"
        if state == HERE:
            tree["server"] = {"auth": {"bearer": True}}
            key = create(place / "data", "load", RATES)
        command = ours(tree, place, place / "data")
        environment = {"PYTHONPATH": str(state), "STACKED_API_KEY": key}
        self.url = stack.enter_context(running(command, place, environment))
        environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OPENAI_API_KEY": key}
        load = talking([sys.executable, "-c", _DRIVER], place / "load.log", "load", environment)
        self.talk: Talk = stack.enter_context(load)
        self.talk.hear()

    def run(self, subject: Subject, load: Load, seed: int) -> dict[str, Any]:
        keys = list(subject.members)
        said = words(self.url, subject.base, keys, load, Lengths(32, 32), seed)
        return run_load(self.talk, said, load)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--clients", default="16,64")
    parser.add_argument("--requests", type=int, default=15, help="of each client")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    before = options.before.resolve()
    loads = loads_of(options.clients, "", options.requests)
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        requested = Requested(options.base, rank=8, engine={"max_model_len": 512})
        subject = prepare(requested, 4, Path(place), default_data_dir(), Quiet())
        os.chdir(place)  # `python -m` looks for the package in the current directory first
        sides = [
            (state, Side(subject, state, Path(place) / f"{at}", stack))
            for at, state in enumerate((before, HERE, HERE, before))
        ]
        for load in loads:
            rows: list[dict[str, list[float]]] = []
            for at in range(options.rounds + 1):  # the first one warms up
                found: dict[tuple[Path, str], float] = {}
                for state, side in sides[at % 4 :] + sides[: at % 4]:
                    for name, figure in side.run(subject, load, at + 1).items():
                        found[state, name] = found.get((state, name), 0.0) + figure / 2
                rows.append({name: [found[before, name], found[HERE, name]] for name in FIGURES})
                so_far = (f"{found[before, name]:.2f} {found[HERE, name]:.2f}" for name in SHOWN)
                print(load.name, at or "warm", *so_far, sep="  ", file=sys.stderr, flush=True)
            for name in SHOWN:
                pairs = [row[name] for row in rows[1:]]
                ratios = sorted(after / first for first, after in pairs)
                first, after = (statistics.median(side) for side in zip(*pairs, strict=True))
                print(
                    f"{load.name:11} {name:19} {first:8.2f} {after:8.2f}  "
                    f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
