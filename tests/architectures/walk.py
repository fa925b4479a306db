"""The walk: builds, checks, serves and compares every adapter of every architecture.

    python -m tests.architectures.walk FOLDER REPORT SETTINGS ARCHITECTURE…

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

from tests.architectures import answers, engines, verdicts
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


def walk(name: str, root: Path, report: Report, *, serve: bool, skip: frozenset[str]) -> None:
    """One architecture; adapters in `skip` are not given to the engine, without `serve` none is."""
    expected = answers.make(name, root, alone=serve, asks=serve)
    base = verdicts.read(root / "base")
    made = [adapter for adapter, answer in expected.items() if isinstance(answer, answers.Answer)]
    for adapter, answer in expected.items():
        if isinstance(answer, str):
            report.tell(name, adapter, "not made", answer)
        elif adapter != "base":
            report.tell(name, adapter, "check", verdicts.verdict(base, root / adapter))
            if serve and answer.distance(expected["base"]) < CLOSE:
                report.tell(name, adapter, "no effect")
    numbers = {adapter: at for at, adapter in enumerate(made) if at and adapter not in skip}
    while serve and numbers:  # again where an engine has died
        report.tell(name, "base", "begin")
        try:
            with engines.engine(root / "base") as llm:
                report.tell(name, "base", "served", expected["base"].distance(engines.ask(llm)))
                _serve_all(llm, name, root, numbers, expected, report)
        except Exception as error:  # noqa: BLE001  vLLM raises anything; it is told
            report.tell(name, "base", "no engine", _shown(error))
            _serve_alone(name, root, report)
            return


def _serve_alone(name: str, root: Path, report: Report) -> None:
    """Whether the engine would serve the base without LoRA."""
    report.tell(name, "base", "begin without LoRA")
    try:
        with engines.engine(root / "base", lora=False) as llm:
            engines.ask(llm)
    except Exception as error:  # noqa: BLE001  vLLM raises anything; it is told
        report.tell(name, "base", "not served", _shown(error))


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
        except Exception as error:  # noqa: BLE001  vLLM raises anything; it is told
            report.tell(name, adapter, "refused", _shown(error))
            continue
        try:
            answer = engines.ask(llm, number, root / adapter)
            engines.remove(llm, number)
        except Exception as error:  # noqa: BLE001  vLLM raises anything; it is told
            report.tell(name, adapter, "died", _shown(error))
            return
        report.tell(name, adapter, "served", expected[adapter].distance(answer))


def _shown(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    file = where.filename.rpartition("site-packages/")[2]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]} ({file}:{where.lineno})"


def main(folder: str, report: str, told: str, *names: str) -> None:
    """`told`: JSON of {"serve": bool, "skip": {architecture: [adapter, …]}}."""
    settings = json.loads(told)
    engines.prepare(serve=settings["serve"])
    lines = Report(Path(report))
    for name in names:
        skip = frozenset(settings["skip"].get(name, ()))
        try:
            walk(name, Path(folder) / name, lines, serve=settings["serve"], skip=skip)
        except Exception as error:  # noqa: BLE001  vLLM raises anything; it is told
            lines.tell(name, "base", "no base", _shown(error))
        lines.tell(name, "", "end")


if __name__ == "__main__":
    main(*sys.argv[1:])
