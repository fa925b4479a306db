"""`stacked shadow`: what copies of requests to other models have shown."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stacked.cli.shared import AsJson, Url, brief, server

_HEADER = [
    "key",
    "served by",
    "to",
    "shadow",
    "copies",
    "same",
    "same JSON",
    "logprob",
    "tokens",
    "seconds",
    "failed",
    "dropped",
]


def shadow(
    samples: Annotated[
        int, typer.Option(min=0, max=1000, help="So many comparisons with their texts, as JSON.")
    ] = 0,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show how a running server's shadow traffic compares: the served models, then the shadows.

    Example:  stacked shadow
    """
    from stacked.terminal import out, table, write_json

    with server(url) as client:
        report = client.shadow(samples)
    if as_json or samples:
        write_json(report)
        return
    out.print(table(_HEADER, [_row(each) for each in report["items"]]))


def _row(line: dict[str, Any]) -> list[str]:
    means = (_means(line[name], digits) for name, digits in _DIGITS.items())
    return [
        line["key"],
        brief(line["servedDigest"]),
        line["to"],
        brief(line["shadowDigest"]),
        str(line["copies"]),
        _part(line["same"]),
        _part(line["jsonSame"]),
        *means,
        _counts(line["failed"]),
        _counts(line["dropped"]),
    ]


_DIGITS = {"logprob": 3, "tokens": 1, "seconds": 2}


def _part(part: dict[str, Any] | None) -> str:
    """As a percentage, with its bounds."""
    if part is None:
        return ""
    share = part["count"] / part["total"]
    return f"{share:.0%} of {part['total']} ({part['low']:.0%} to {part['high']:.0%})"


def _means(means: dict[str, Any], digits: int) -> str:
    if not means["count"]:
        return ""
    shown = f"{means['served']:.{digits}f} / {means['shadow']:.{digits}f}"
    if by := means.get("difference"):
        shown += f" ({by['low']:+.{digits}f} to {by['high']:+.{digits}f})"
    return shown


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
