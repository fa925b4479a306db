"""`stacked status` and `stacked groups`: what a running server serves, once or repeatedly."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from stacked.cli.shared import AsJson, Url, Watch, brief, server

if TYPE_CHECKING:
    from rich.console import Group


def groups(url: Url = None) -> None:
    """List the groups of a running server, the newest first; ● is the one that is served.

    Example:  stacked groups
    """
    from stacked.terminal import out, table

    with server(url) as client:
        status, listed = client.status(), client.groups()
    said = {status.get("previousGroupId"): "previous", status.get("groupId"): "served"}
    fields = ("displayName", "id", "lifecycleState", "timeCreated")
    rows = [[*map(each.get, fields), said.get(each["id"])] for each in listed]
    marks = ["[green]●[/]" if each["id"] == status.get("groupId") else " " for each in listed]
    out.print(table(["group", "id", "state", "created", ""], rows, marks))


def status(
    watch: Watch = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show what a running server serves: its group, its generation, every model.

    Example:  stacked status --watch
    """
    with server(url) as client:
        show(client.status, _picture, watch=watch, as_json=as_json)


def show(
    read: Callable[[], dict[str, Any]],
    picture: Callable[[dict[str, Any]], Group],
    *,
    watch: bool,
    as_json: bool,
) -> None:
    """Show what a server says; with `watch` again whenever it says something else."""
    from rich.live import Live

    from stacked.terminal import out, write_json

    def write(report: dict[str, Any]) -> None:
        if as_json:
            write_json(report)
        else:
            out.print(picture(report))

    if not watch:
        write(read())
    elif as_json or not sys.stdout.isatty():
        for each in _changes(read):
            write(each)
    else:
        with Live(console=out, auto_refresh=False) as live:
            for each in _changes(read):
                live.update(picture(each), refresh=True)


def _changes(read: Callable[[], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What is there now, and again whenever it has changed."""
    shown = None
    while True:
        report = read()
        if report != shown:
            yield report
            shown = report
        time.sleep(1.0)  # the server has no event for a change


def _disk(disk: dict[str, Any] | None) -> str:
    """The free space, with a warning if it is low."""
    from stacked.terminal import size

    if not disk:
        return ""
    space = f"{size(disk['freeBytes'])} free, {size(disk['storedBytes'])} stored"
    return f"{space}; filling up, see: stacked gc --dry-run" if disk["low"] else space


def _engine(engine: dict[str, Any] | None) -> str:
    """What the engine does, and why, where it does not serve. Older servers do not say it."""
    if not engine or engine["state"] == "serving":
        return ""
    then = f"; next start {engine['nextStart']}" if engine.get("nextStart") else ""
    return f"{engine['state']}: {engine['reason']}{then}"


def _gate(gate: dict[str, Any]) -> str:
    """What a gate has said of the adapter that came to a key."""
    served = "" if gate["served"] is None else f", {gate['served']:.3f} before"
    verdict = "refused" if gate["reasons"] else "passed"
    return f"{gate['gate']}: {gate['inferenceKey']} {verdict}, {gate['score']:.3f}{served}"


def _picture(status: dict[str, Any]) -> Group:
    """The status as lines, with the models in a table."""
    from rich.console import Group

    from stacked.terminal import table

    group = [status["groupName"], status["groupId"]]
    facts = {
        "engine": _engine(status.get("engine")),
        "deployment": status["deploymentId"],
        "state": ": ".join(filter(None, [status["state"], status.get("reason")])),
        "group": "  ".join(filter(None, group)),
        "generation": status["generation"],
        "previous": status.get("previousGroupId"),
        "update": status.get("update"),
        "draining": ", ".join(status.get("draining") or ()),
        "gates": "\n".join(map(_gate, status.get("gates") or ())),
        "disk": _disk(status.get("disk")),
        "logs": "\n".join(path for path in (status.get("logs") or {}).values() if path),
    }
    header = ["key", "model id", "digest", "rank", "state", "requests", "resident", "reason"]
    fields = ("inferenceKey", "modelId", "digest", "rank", "state", "leases", "resident", "reason")
    models = [
        {**each, "digest": brief(each["digest"]), "resident": "yes" if each["resident"] else "no"}
        for each in status["models"]
    ]
    lines = table(None, [[name, value] for name, value in facts.items() if value])
    parts: list[Any] = [
        lines,
        "",
        table(header, [[each.get(name) for name in fields] for each in models]),
    ]
    if tried := status.get("experiments"):
        rows = [[each["key"], each["unit"], each["phase"], _shares(each)] for each in tried]
        parts += ["", table(["experiment", "unit", "phase", "arms"], rows)]
    return Group(*parts)


def _shares(experiment: dict[str, Any]) -> str:
    return ", ".join(f"{arm['key']} {arm['share']:.0%}" for arm in experiment["arms"])
