"""Walk the architectures and print what is served, what is refused and what is wrong.

    python -m tests.architectures.run [--folder DIR] [--write-docs] [ARCHITECTURE…]

The walk is a process of its own, so that an engine that ends it is found out and the walk goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.architectures import table
from tests.architectures.bases import ARCHITECTURES


def walk(folder: Path, names: Sequence[str]) -> dict[str, table.Row]:
    """Cells of these architectures, in order; bases and adapters are left in `folder`."""
    report = folder / "report.jsonl"
    report.write_text("")
    left, skip = list(names), dict[str, list[str]]()
    while left:
        words = [str(folder), str(report), json.dumps(skip), *left]
        with (folder / "log.txt").open("a") as log:
            ended = subprocess.run(
                [sys.executable, "-m", "tests.architectures.walk", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        lines = [json.loads(line) for line in report.read_text().splitlines()]
        over = {line["architecture"] for line in lines if line["event"] == "end"}
        left = [name for name in left if name not in over]
        if left and lines:
            last = lines[-1]
            print(f"{last} ended the walk: {ended.returncode}", file=sys.stderr)
            seen = [line["adapter"] for line in lines if line["architecture"] == left[0]
                    and line["event"] == "begin"]
            if not seen or seen[-1] == "base":
                left.pop(0)
            else:
                skip[left[0]] = [*skip.get(left[0], ()), *(each for each in seen if each != "base")]
    return table.rows(report.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="ARCHITECTURE")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--write-docs", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = walk(folder, args.names or list(ARCHITECTURES))
    print(table.markdown(found))
    print()
    print(table.reasons(found))


if __name__ == "__main__":
    main()
