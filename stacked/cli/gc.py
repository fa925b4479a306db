"""`stacked gc`: what nobody needs any more is removed, and what stays is explained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stacked.cli.shared import AsJson, DataDir, data_dir_of, optional, server

if TYPE_CHECKING:
    from stacked.config import ControlConfig


def gc(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="A YAML file whose `retention` and `storage` count; a server takes its own.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Say what would go, and remove nothing.")
    ] = False,
    url: Annotated[
        str | None,
        optional(help="Ask this server, which serves from the data directory."),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Remove adapters, bases, groups, records and logs that nobody needs any more.

    A running server does this by itself. Without --url, nothing may serve from the data directory.

    Example:  stacked gc --dry-run
    """
    from stacked.terminal import write_json

    if url is not None:
        with server(url) as client:
            report = client.collect(dry_run=dry_run)
    else:
        report = _collect(data_dir_of(data_dir), _settings(config), dry_run)
    if as_json:
        write_json(report)
    else:
        _show(report)


def _settings(config: Path | None) -> ControlConfig:
    from stacked.config import ControlConfig, load_server

    return load_server(config) if config else ControlConfig()


def _collect(directory: Path, settings: ControlConfig, dry_run: bool) -> dict[str, Any]:
    import sys

    from stacked.errors import DataDirInUse
    from stacked.retention.collect import Collector, locked_records
    from stacked.store import AdapterStore

    try:
        with locked_records(directory, settings.storage) as records:
            store = AdapterStore(directory / "store")
            collector = Collector(settings.retention, directory, store, records)
            report = collector.run(dry_run=dry_run, most=sys.maxsize, seconds=float("inf"))
    except DataDirInUse as error:
        raise DataDirInUse(
            f"{error}; or let that server do it: stacked gc --url http://127.0.0.1:8080"
        ) from error
    return report.to_json()


def _show(report: dict[str, Any]) -> None:
    from stacked.terminal import err, out, size, table

    goes = "would go" if report["dryRun"] else "removed"
    rows = [
        [
            goes if line["freed"] else "stays",
            line["kind"],
            line["count"],
            size(line["bytes"]) if line["bytes"] else "",
            line["reason"],
        ]
        for line in report["lines"]
    ]
    if rows:
        out.print(table(["", "kind", "count", "size", "reason"], rows))
    out.print(f"{goes}: {size(report['freedBytes'])}", markup=False)
    if report["unfinished"]:
        out.print("there is more to remove; the server goes on with it", markup=False)
    for note in report["notes"]:
        err.print(f"warning: {note}", style="yellow", markup=False)
