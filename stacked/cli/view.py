"""`stacked status` and `stacked groups`: what a running server serves, once or repeatedly."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stacked.cli.shared import Url, brief, server

if TYPE_CHECKING:
    from rich.console import Group

    from stacked.client import Client


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
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it again whenever it changes, until ^C.")
    ] = False,
    url: Url = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print it as JSON, one line each time.")
    ] = False,
) -> None:
    """Show what a running server serves: its group, its generation, every model.

    Example:  stacked status --watch
    """
    with server(url) as client:
        if not watch:
            _print_status(client.status(), as_json)
        elif as_json or not sys.stdout.isatty():
            _print_changes(client, as_json)
        else:
            _watch(client)


def _print_status(status: dict[str, Any], as_json: bool) -> None:
    from stacked.terminal import out, write

    if as_json:
        write(json.dumps(status, ensure_ascii=False) + "\n")
    else:
        out.print(_picture(status))


def _print_changes(client: Client, as_json: bool) -> None:
    shown = None
    while True:
        status = client.status()
        if status != shown:
            _print_status(status, as_json)
            shown = status
        time.sleep(1.0)


def _watch(client: Client) -> None:
    from rich.live import Live

    from stacked.terminal import out

    with Live(_picture(client.status()), console=out, auto_refresh=False) as live:
        while True:
            time.sleep(1.0)
            live.update(_picture(client.status()), refresh=True)


def _disk(disk: dict[str, Any] | None) -> str:
    """The free space, with a warning if it is low."""
    from stacked.terminal import size

    if not disk:
        return ""
    space = f"{size(disk['freeBytes'])} free, {size(disk['storedBytes'])} stored"
    return f"{space}; filling up, see: stacked gc --dry-run" if disk["low"] else space


def _picture(status: dict[str, Any]) -> Group:
    """The status as lines, with the models in a table."""
    from rich.console import Group

    from stacked.terminal import table

    facts = {
        "deployment": status["deploymentId"],
        "state": status["state"] + (f": {status['reason']}" if status.get("reason") else ""),
        "group": f"{status['groupName']}  {status['groupId']}",
        "generation": str(status["generation"]),
        "previous": status.get("previousGroupId") or "",
        "update": status.get("update") or "",
        "draining": ", ".join(status.get("draining") or ()),
        "disk": _disk(status.get("disk")),
    }
    header = ["key", "model id", "digest", "rank", "state", "requests", "resident", "reason"]
    fields = ("inferenceKey", "modelId", "digest", "rank", "state", "leases", "resident", "reason")
    models = [
        {**each, "digest": brief(each["digest"]), "resident": "yes" if each["resident"] else "no"}
        for each in status["models"]
    ]
    lines = table(None, [[name, value] for name, value in facts.items() if value])
    return Group(lines, "", table(header, [[each.get(name) for name in fields] for each in models]))
