"""`stacked fleet`: several servers as one; on Ray Serve, it starts and stops them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stacked.cli.shared import HELP, AsJson, DataDir, Url, Watch, data_dir_of, server

if TYPE_CHECKING:
    from types import ModuleType

    from rich.console import Group

fleet = typer.Typer(
    name="fleet", help="Several servers as one.", no_args_is_help=True, context_settings=HELP
)

File = Annotated[Path, typer.Argument(help="The file that each replica serves.")]


@fleet.command()
def status(
    watch: Watch = False,
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
    parts: list[Any] = [
        table(None, [[k, v] for k, v in facts.items() if v]),
        "",
        table(header, rows),
    ]
    if lacking := [
        [each["name"], model_id, why]
        for each in report["members"]
        for model_id, why in (each.get("lacking") or {}).items()
    ]:
        parts += ["", table(["replica", "model that it does not serve", "reason"], lacking)]
    return Group(*parts)


def _ago(member: dict[str, Any]) -> str:
    return f"{member['silentSeconds']:.1f} s ago"


@fleet.command()
def scale(
    least: Annotated[int, typer.Argument(help="How many replicas.")],
    most: Annotated[int | None, typer.Argument(help="Or from LEAST to MOST.")] = None,
    url: Url = None,
) -> None:
    """Have a fleet on Ray Serve run another number of replicas.

    Examples:  stacked fleet scale 3  |  stacked fleet scale 1 8
    """
    from stacked.deployment.instances import Bounds
    from stacked.terminal import out

    bounds = Bounds(least, least if most is None else most)
    with server(url) as client:
        client.scale(client.status()["deploymentId"], bounds.policy)
    out.print("Ray Serve will start or stop replicas; see: stacked fleet status --watch")


@fleet.command()
def deploy(config: File, data_dir: DataDir = None) -> None:
    """Have Ray Serve run a file's replicas, on a cluster that runs or on one of its own.

    Example:  stacked fleet deploy configs/ray.yaml

    Deployed again, what runs is changed to the file's number of replicas. Without a cluster, this
    command is the cluster, and serves until ^C.
    """
    from stacked.config import load_server
    from stacked.terminal import out

    on_ray = _ray()
    deployed = on_ray.deploy(config, load_server(config), data_dir_of(data_dir))
    out.print(f"The fleet is on {deployed.url}", style="green")
    if deployed.own:
        on_ray.hold()


@fleet.command()
def stop(config: File) -> None:
    """Have Ray Serve stop a file's replicas, when their requests have ended.

    Example:  stacked fleet stop configs/ray.yaml
    """
    from stacked.config import load_server

    _ray().stop(load_server(config))


def _ray() -> ModuleType:
    """Raises ConfigInvalid without the extra."""
    from stacked.errors import ConfigInvalid

    try:
        from stacked.ray import deploy
    except ModuleNotFoundError as error:
        raise ConfigInvalid(f"{error}; install the extra: pip install 'stacked[fleet]'") from error
    return deploy
