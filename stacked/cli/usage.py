"""`stacked usage`: who has used which model, and how much."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from stacked.cli.shared import AsJson, Url, optional, server


class By(enum.Enum):
    CREDENTIAL = "credential"
    KEY = "key"


def usage(
    since: Annotated[str, typer.Option(help="How far back: 90m, 24h or 30d.")] = "7d",
    by: Annotated[By | None, optional(help="Sum over the other of the two.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show the requests and tokens of a running server by credential and inference key.

    Example:  stacked usage --since 30d --by credential
    """
    from stacked.terminal import out, table, write_json

    with server(url) as client:
        report = client.usage(since, by.value if by else None)
    if as_json:
        write_json(report)
        return
    counts = ("requests", "errors", "promptTokens", "generatedTokens")
    rows = [
        [each["credential"] or "", each["key"] or "", *(f"{each[name]:,}" for name in counts)]
        for each in report["items"]
    ]
    header = ["credential", "key", "requests", "errors", "prompt tokens", "generated tokens"]
    out.print(table(header, rows))
    out.print(f"since {report['since']}", markup=False)
