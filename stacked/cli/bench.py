"""`stacked bench`: throughput, serving, LIVE updates and start, measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stacked.cli.measuring import (
    Common,
    OutputTokens,
    PromptTokens,
    Rounds,
    Together,
    how,
    measure,
    what,
    with_common,
)
from stacked.cli.shared import HELP

bench = typer.Typer(
    name="bench",
    help="Measure on this machine, with engines and servers of its own. Figures are ratios of "
    "things measured side by side; save them with --json, --table and --plot.",
    no_args_is_help=True,
    context_settings=HELP,
)


@bench.command()
@with_common()
def offline(
    common: Common,
    counts: Annotated[
        str, what("--adapters", help="Rows, by adapters.")
    ] = "0,1,slots,slots+1,2xslots,64,500",
    most: Annotated[int, what("--max-adapters", help="Leave out larger rows.")] = 64,
    assign: Annotated[
        str,
        what(
            help="Which adapter a request asks for: uniform, zipf, round-robin, one-hot; several "
            "with commas between them."
        ),
    ] = "uniform",
    slots: Annotated[int, what(min=1, help="The engine's max_loras.")] = 8,
    batch: Annotated[int, what(min=1, help="Requests at once.")] = 8,
    requests: Annotated[
        int | None, what(min=1, help="Of each run; 4 x batch.", show_default=False)
    ] = None,
    prompt_tokens: PromptTokens = 32,
    output_tokens: OutputTokens = 32,
    rounds: Rounds = 3,
    together: Together = False,
) -> None:
    """Throughput of the engine alone, each row as a ratio of LoRA off under the same requests.

    Example:  stacked bench offline --adapters 0,1,slots,2xslots --peer vllm --together
    """
    from stacked.bench.offline import Settings, run_offline
    from stacked.bench.workload import most_adapters, rows_of

    rows = rows_of(counts, assign, slots, most)
    settings = Settings(
        rows,
        slots,
        batch,
        requests or 4 * batch,
        prompt_tokens,
        output_tokens,
        rounds,
        common.peer is not None,
        together,
    )
    measure(common, run_offline, settings, max(1, most_adapters(rows)))


@bench.command()
@with_common()
def online(
    common: Common,
    adapters: Annotated[int, what(min=0, help="How many, used in turn.")] = 4,
    clients: Annotated[str, what(help="Loads by concurrent clients, such as 1,8,64.")] = "1,8",
    rates: Annotated[str, what(help="Loads by arrivals per second, such as 5,20.")] = "",
    requests: Annotated[
        int, what(min=1, help="Requests of each client, or of two seconds at a rate.")
    ] = 8,
    prompt_tokens: PromptTokens = 32,
    output_tokens: OutputTokens = 32,
    against: Annotated[
        list[str] | None,
        how(
            metavar="NAME=VALUE",
            help="Compare with our server with this engine option instead; repeatable.",
            show_default=False,
        ),
    ] = None,
    starts: Annotated[int, how(min=1, help="How often each server is started.")] = 2,
    rounds: Annotated[int, how(min=1, help="How often all loads are run in one start.")] = 2,
    together: Together = False,
) -> None:
    """Our server under vLLM's serving benchmark; with `--peer vllm`, vLLM's own, interleaved.

    Both get the same engine settings, the same adapters and the same load. With `--against`, a
    setting is measured: our server without it and with it, interleaved.

    Example:  stacked bench online --base tiny --clients 16,64 --peer vllm --together
    """
    from stacked.bench.load import Lengths, loads_of
    from stacked.bench.online import Settings, run_online
    from stacked.bench.subject import engine_options

    settings = Settings(
        loads_of(clients, rates, requests),
        Lengths(prompt_tokens, output_tokens),
        starts,
        rounds,
        common.peer is not None,
        together,
        engine_options(against or ()),
    )
    measure(common, run_online, settings, adapters)


@bench.command()
@with_common(rank=4)
def start(
    common: Common,
    groups: Annotated[str, what(help="Adapters in each group.")] = "1,50,500",
    rounds: Rounds = 1,
) -> None:
    """Seconds from command to first token, cold and warm, for groups of several sizes.

    Example:  stacked bench start --groups 1,50 --peer vllm
    """
    from stacked.bench.start import Settings, groups_of, run_start

    settings = Settings(groups_of(groups), rounds, common.peer is not None)
    measure(common, run_start, settings, max(settings.groups))


@bench.command()
@with_common(rank=64, targets="all-linear")
def swap(
    common: Common,
    config: Annotated[
        Path | None,
        typer.Argument(help="A YAML file; its members are the adapters.", show_default=False),
    ] = None,
    adapters: Annotated[int, what(min=1, help="Without a file: how many adapters.")] = 6,
    updates: Annotated[int, typer.Option(min=1, help="LIVE updates, at least.")] = 100,
    clients: Annotated[int, typer.Option(min=1, help="Clients at once.")] = 16,
    groups: Annotated[int, typer.Option(min=4, help="Groups that take turns.")] = 4,
    responses: Annotated[int, typer.Option(min=0, help="Whole answers, at least.")] = 2000,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 16,
    gaps: Annotated[
        bool, typer.Option("--gaps", help="Measure gaps between tokens instead.")
    ] = False,
    streams: Annotated[int, typer.Option(min=1, help="With --gaps: streams at once.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="With --gaps: loads measured.")] = 5,
    steady: Annotated[
        float, typer.Option(min=1, help="With --gaps: seconds without a load, before each.")
    ] = 8.0,
) -> None:
    """LIVE updates under a storm of clients; every answer is compared with a fresh server's.

    Exits with 1 if an answer is lost, mixed, or of a version that was not live.

    With --gaps: how long streams of the first adapter wait between tokens, and for a first token,
    while a LIVE update loads the others; with --peer vllm, while vLLM's own server loads them.

    Example:  stacked bench swap configs/demo.yaml --updates 100 --clients 16

    Example:  stacked bench swap --gaps --adapters 6 --rank 64 --peer vllm
    """
    from stacked.bench import gaps as gap
    from stacked.bench import storm

    if config is not None and common.adapter:
        raise typer.BadParameter("a file names its own adapters; leave out --adapter")
    if gaps:
        around = gap.Settings(streams, repeats, steady, common.peer is not None)
        measure(common, gap.run_gaps, around, adapters + 1, config)
        return
    if common.peer is not None or common.plot is not None:
        raise typer.BadParameter("the storm has no peer and no plot; these go with --gaps")
    settings = storm.Settings(updates, clients, groups, responses, max_tokens)
    measure(common, storm.run_storm, settings, adapters, config, lambda tree, _: tree)
