"""The walk: builds, checks, serves and compares every adapter of every architecture.

    python -m tests.architectures.walk FOLDER REPORT SKIP ARCHITECTURE…

appends to REPORT a line of JSON for each thing that is begun and found out, so that whoever reads
it knows what ended this process. It asserts nothing and makes no table.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.architectures import engines
from tests.architectures.table import CLOSE

class Report:
    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def tell(self, architecture: str, adapter: str, event: str, value: Any = None) -> None:
        if value == float("inf"):
            value = None
        line = {"architecture": architecture, "adapter": adapter, "event": event, "value": value}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def verdict(base: Path, adapter: Path) -> tuple[str, str]:
    """The code and sentence with which `check` refuses the adapter; empty where it does not."""
    from stacked.errors import StackedError
    from stacked.store.base import BaseModules
    from stacked.store.checks import check_directory

    try:
        check_directory(adapter, BaseModules.read(base), None)
    except StackedError as error:
        return error.code, str(error)
    return "", ""


def walk(name: str, root: Path, report: Report, *, alone: bool, skip: frozenset[str]) -> None:
    """One architecture; adapters in `skip` are not given to the engine."""
    from tests.architectures import answers

    expected = answers.make(name, root, alone=alone)
    right = expected["base"]
    assert isinstance(right, answers.Answer)
    wanted = []
    for adapter, answer in expected.items():
        if isinstance(answer, str):
            report.tell(name, adapter, "not made", answer)
        elif adapter != "base":
            if right.distance(answer) < CLOSE:
                report.tell(name, adapter, "no effect")
            report.tell(name, adapter, "check", verdict(root / "base", root / adapter))
            wanted.append(adapter)
    numbers = {adapter: at for at, adapter in enumerate(wanted, 1) if adapter not in skip}
    while numbers:  # again where an engine has died
        report.tell(name, "base", "begin")
        try:
            with engines.engine(root / "base") as llm:
                report.tell(name, "base", "served", right.distance(engines.ask(llm)))
                _serve_all(llm, name, root, numbers, expected, report)
        except Exception as error:
            report.tell(name, "base", "no engine", _shown(error))
            return


def _serve_all(
    llm: Any,
    name: str,
    root: Path,
    numbers: dict[str, int],
    expected: Mapping[str, Any],
    report: Report,
) -> None:
    """Load, ask, compare and remove one after the other, as long as the engine lives."""
    for adapter, number in [*numbers.items()]:
        report.tell(name, adapter, "begin")
        del numbers[adapter]
        try:
            engines.load(llm, number, root / adapter)
        except Exception as error:
            report.tell(name, adapter, "refused", _shown(error))
            continue
        try:
            answer = engines.ask(llm, number, root / adapter)
            engines.remove(llm, number)
        except Exception as error:
            report.tell(name, adapter, "died", _shown(error))
            return
        report.tell(name, adapter, "served", expected[adapter].distance(answer))


def _shown(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    file = where.filename.rpartition("site-packages/")[2]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]} ({file}:{where.lineno})"


def main(folder: str, report: str, skip: str, *names: str) -> None:
    engines.prepare()
    skipped = json.loads(skip)
    told = Report(Path(report))
    for name in names:
        try:
            leave = frozenset(skipped.get(name, ()))
            walk(name, Path(folder) / name, told, alone=True, skip=leave)
        except Exception as error:
            told.tell(name, "base", "no base", _shown(error))
        told.tell(name, "", "end")


if __name__ == "__main__":
    main(*sys.argv[1:])
