"""`stacked fleet`: several servers as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stacked.cli.shared import HELP, AsJson, Url, server

if TYPE_CHECKING:
    from rich.console import Group

fleet = typer.Typer(
    name="fleet", help="Several servers as one.", no_args_is_help=True, context_settings=HELP
)


@fleet.callback()
def _commands() -> None:
    """Of which there is one, by its name."""


@fleet.command()
def status(
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it again whenever it changes, until ^C.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show what the fleet of a running server serves, its newest update, and every replica.

    Example:  stacked fleet status --watch
    """
    from stacked.cli.view import show

    with server(url) as client:
        show(client.fleet, _picture, watch=watch, as_json=as_json)


def _picture(report: dict[str, Any]) -> Group:
    from rich.console import Group

    from stacked.terminal import table

    update = report["update"] or {}
    stage = [update.get("stage"), update.get("reason") or update.get("groupId")]
    facts = {
        "mode": report["mode"],
        "group": report["groupId"],
        "generation": report["generation"],
        "update": ": ".join(filter(None, stage)),
        "work request": update.get("workRequestId"),
        "began at": update.get("coordinator"),
        "answered by": report["replica"],
    }
    header = ["replica", "generation", "gate", "reported", "reason"]
    rows = [
        [each["name"], each["generation"], each["gate"], _ago(each), each["reason"]]
        for each in report["members"]
    ]
    return Group(table(None, [[k, v] for k, v in facts.items() if v]), "", table(header, rows))


def _ago(member: dict[str, Any]) -> str:
    return f"{member['silentSeconds']:.1f} s ago"
