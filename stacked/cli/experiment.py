"""`stacked experiment …`: what a running server knows of experiments, and ending one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stacked.cli.live import promote
from stacked.cli.shared import HELP, AsJson, Url, Watch, brief, conclusions, optional, server
from stacked.cli.view import show as shown

if TYPE_CHECKING:
    from rich.console import Group

experiment = typer.Typer(
    name="experiment",
    help="Experiments: compare the arms behind one key, and keep the better one.",
    no_args_is_help=True,
    context_settings=HELP,
)
Key = Annotated[str, typer.Argument(help="The experiment's inference key.")]
_NOTHING = "No unit has been answered in this phase yet."
_OPEN = "Nothing is certain yet; --metric NAME says how much longer it takes."
_MARKS = {"better": "[green]▲[/]", "worse": "[red]▼[/]", "different": "[cyan]◆[/]"}


@experiment.command("list")
def list_(url: Url = None, as_json: AsJson = False) -> None:
    """List the experiments of a running server; ● is one that is served.

    Example:  stacked experiment list
    """
    from stacked.terminal import out, table, write_json

    with server(url) as client:
        found = client.experiments()["items"]
    if as_json:
        write_json(found)
        return
    rows = [
        [
            each["key"],
            *_totals(each["phase"]),
            "  ".join(_share(arm) for arm in each["phase"]["arms"]),
            each["phase"]["last"][:19].replace("T", " "),
        ]
        for each in found
    ]
    marks = ["[green]●[/]" if each["served"] else " " for each in found]
    out.print(table(["experiment", "units", "answers", "arms", "last answer"], rows, marks))


@experiment.command()
def show(
    key: Key,
    metric: Annotated[str | None, optional("--metric", "-m", help="Only this one.")] = None,
    phase: Annotated[str | None, optional(help="An earlier one. Default: the served one.")] = None,
    watch: Watch = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Compare the arms of an experiment: every metric by unit, and what is certain of it.

    The bounds hold however often you look.

    Example:  stacked experiment show sql --metric correct --watch
    """
    with server(url) as client:
        shown(
            lambda: client.experiment(key, phase=phase, metric=metric),
            _picture,
            watch=watch,
            as_json=as_json,
        )


def _picture(report: dict[str, Any]) -> Group:
    from rich.console import Group
    from rich.text import Text

    from stacked.terminal import printable, table

    phase = report["phase"]
    units, answers = _totals(phase)
    state = {True: "served", False: "not served any more"}[phase["served"]]
    doubt = f"; units came otherwise than by weight (p = {phase['sampleRatio']:.1g})"
    facts = {
        "experiment": report["key"],
        "phase": f"{phase['phase']}, {state}, since {phase['began'][:19].replace('T', ' ')} UTC",
        "units": f"{units} with {answers} answers{doubt * phase['mismatch']}",
        "left out": _left_out(phase),
        "earlier": ", ".join(each["phase"] for each in report["others"]),
    }
    lines: list[Any] = [table(None, [[name, value] for name, value in facts.items() if value]), ""]
    arms = [
        [arm["key"], f"{arm['share']:.0%}", brief(arm["digest"]), arm["units"], arm["answers"]]
        for arm in phase["arms"]
    ]
    lines += [table(["arm", "share", "digest", "units", "answers"], arms), ""]
    rows, marks = [], []
    for metric in phase["metrics"]:
        for at, arm in enumerate(metric["arms"]):
            rows.append([metric["metric"] if at == 0 else "", *_row(metric, arm)])
            marks.append(_MARKS.get(arm["verdict"] or "", " "))
    header = ["metric", "arm", "units", "mean", "95 % sure", "difference", "95 % sure", ""]
    lines += [table(header, rows, marks), ""]
    if phase["mismatch"]:
        text = (
            "The numbers of units contradict the weights; find out why before you compare the arms."
        )
        lines.append(Text(text, style="red"))
    said = conclusions(phase) or [_NOTHING if units == "0" else _OPEN]
    return Group(*lines, *(Text(printable(each)) for each in said))


def _row(metric: dict[str, Any], arm: dict[str, Any]) -> list[Any]:
    """An arm's cells in the table of metrics."""
    verdict = {None: "", "few": "too few units", "open": "open"}.get(arm["verdict"], arm["verdict"])
    return [
        arm["arm"],
        arm["units"],
        _number(arm["mean"], metric),
        _bounds(arm["bounds"], metric),
        _signed((arm["difference"] or {}).get("value"), metric),
        _bounds(arm["difference"], metric, signed=True),
        verdict,
    ]


def _number(value: float | None, metric: dict[str, Any]) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if metric["share"] else f"{value:.3g}"


def _signed(value: float | None, metric: dict[str, Any]) -> str:
    return "" if value is None else f"{'+' if value >= 0 else ''}{_number(value, metric)}"


def _bounds(bounds: dict[str, Any] | None, metric: dict[str, Any], *, signed: bool = False) -> str:
    if bounds is None:
        return ""
    one = _signed if signed else _number
    return f"{one(bounds['low'], metric)}…{one(bounds['high'], metric)}"


def _totals(phase: dict[str, Any]) -> list[str]:
    return [f"{sum(arm[what] for arm in phase['arms']):,}" for what in ("units", "answers")]


def _share(arm: dict[str, Any]) -> str:
    return f"{arm['key']} {arm['share']:.0%}"


def _left_out(phase: dict[str, Any]) -> str:
    """What has no part in the result, and why."""
    drawn = f"{phase['drawn']:,} answers without a unit" if phase["drawn"] else ""
    dropped = f"{phase['dropped']:,} units beyond experiments.units" if phase["dropped"] else ""
    return ", ".join(filter(None, [drawn, dropped]))


experiment.command()(promote)
