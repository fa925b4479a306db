"""Walk the architectures and print what is served, what is refused and what is wrong.

    python -m tests.architectures.run [--folder DIR] [--write-docs] [ARCHITECTURE…]

The walk is in processes of its own: one that an engine ends is known by its last line, and goes on
without that adapter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from tests.architectures import table
from tests.architectures.bases import ARCHITECTURES

_SECONDS = 1200


def walk(
    folder: Path, names: Sequence[str], *, serve: bool = True, processes: int = 2
) -> dict[str, table.Row]:
    """Cells of these architectures, in order; bases and adapters are left in `folder`.

    Without `serve` adapters are checked and no engine is started.
    """
    with ThreadPoolExecutor(processes) as pool:
        parts = [(folder / str(at), names[at::processes], serve) for at in range(processes)]
        found = dict(chain(*(part.items() for part in pool.map(lambda part: _walk(*part), parts))))
    return {name: found[name] for name in names}


def _walk(folder: Path, names: Sequence[str], serve: bool) -> dict[str, table.Row]:
    folder.mkdir(parents=True, exist_ok=True)
    report, left = folder / "report.jsonl", list(names)
    report.write_text("")
    skip: dict[str, list[str]] = {}
    while left:
        settings = json.dumps({"serve": serve, "skip": skip})
        command = [sys.executable, "-m", "tests.architectures.walk"]
        with (folder / "log.txt").open("a") as log:
            subprocess.run(
                [*command, str(folder), str(report), settings, *left],
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=_SECONDS,
                check=False,
            )
        lines = [json.loads(line) for line in report.read_text().splitlines()]
        ended = {line["architecture"] for line in lines if line["event"] == "end"}
        left = [name for name in left if name not in ended]
        begun = [
            line["adapter"]
            for line in lines
            if left and line["architecture"] == left[0] and line["event"] == "begin"
        ]
        if begun and begun[-1] != "base" and begun != skip.get(left[0]):
            skip[left[0]] = begun  # an adapter ended it: the others go on
        else:
            left = left[1:]
    return table.rows(report.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="ARCHITECTURE")
    parser.add_argument("--folder", type=Path, help="where bases and adapters are left")
    parser.add_argument("--write-docs", action="store_true", help="put the table into the document")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        found = walk(folder, args.names or list(ARCHITECTURES), processes=args.processes)
    written = table.markdown(found)
    print(written)
    print("\n".join(["", "Bad cells:", *table.bad(found)]))
    if args.write_docs:
        table.write(written)


if __name__ == "__main__":
    main()
