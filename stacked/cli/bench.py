"""`stacked bench`: throughput, serving, LIVE updates and start, measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stacked.cli.bench_options import (
    HOW,
    WHAT,
    AdapterDirs,
    Base,
    EngineOptions,
    JsonFile,
    Note,
    OutputTokens,
    Peer,
    PlotFile,
    PromptTokens,
    Rank,
    Rounds,
    TableFile,
    Targets,
    Together,
)
from stacked.cli.measuring import Outputs, ends_well, is_peer, measure, requested_of, storm
from stacked.cli.shared import DataDir

bench = typer.Typer(
    name="bench",
    help="Measure on this machine, with engines and servers of its own. Figures are ratios of "
    "things measured side by side; save them with --json, --table and --plot.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@bench.command()
def offline(
    base: Base = "smollm2-135m-instruct",
    adapter: AdapterDirs = None,
    rank: Rank = 8,
    targets: Targets = "attention",
    counts: Annotated[
        str, typer.Option("--adapters", help="Rows, by adapters.", rich_help_panel=WHAT)
    ] = "0,1,slots,slots+1,2xslots,64,500",
    most: Annotated[
        int, typer.Option("--max-adapters", help="Leave out larger rows.", rich_help_panel=WHAT)
    ] = 64,
    assign: Annotated[
        str,
        typer.Option(
            help="Which adapter a request asks for: uniform, zipf, round-robin, one-hot; several "
            "with commas between them.",
            rich_help_panel=WHAT,
        ),
    ] = "uniform",
    slots: Annotated[
        int, typer.Option(min=1, help="The engine's max_loras.", rich_help_panel=WHAT)
    ] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Requests at once.", rich_help_panel=WHAT)] = 8,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of each run; 4 x batch.", rich_help_panel=WHAT, show_default=False
        ),
    ] = None,
    prompt_tokens: PromptTokens = 32,
    output_tokens: OutputTokens = 32,
    engine: EngineOptions = None,
    peer: Peer = None,
    rounds: Rounds = 3,
    together: Together = False,
    data_dir: DataDir = None,
    json_file: JsonFile = None,
    table_file: TableFile = None,
    plot_file: PlotFile = None,
    note: Note = "",
) -> None:
    """Throughput of the engine alone, each row as a ratio of LoRA off under the same requests.

    Example:  stacked bench offline --adapters 0,1,slots,2xslots --peer vllm --together
    """
    from stacked.bench.offline import Settings, run_offline
    from stacked.bench.workload import most_adapters, rows_of

    with ends_well():
        rows = rows_of(counts, assign, slots, most)
        settings = Settings(
            rows,
            slots,
            batch,
            requests or 4 * batch,
            prompt_tokens,
            output_tokens,
            rounds,
            is_peer(peer),
            together,
        )
        requested = requested_of(base, adapter, rank, targets, engine)
        measure(
            lambda subject, place, tell: run_offline(subject, settings, place, tell),
            requested,
            max(1, most_adapters(rows)),
            data_dir,
            (json_file, table_file, plot_file, note),
        )


@bench.command()
def online(
    base: Base = "smollm2-135m-instruct",
    adapter: AdapterDirs = None,
    adapters: Annotated[
        int, typer.Option(min=0, help="How many, used in turn.", rich_help_panel=WHAT)
    ] = 4,
    rank: Rank = 8,
    targets: Targets = "attention",
    clients: Annotated[
        str,
        typer.Option(help="Loads by concurrent clients, such as 1,8,64.", rich_help_panel=WHAT),
    ] = "1,8",
    rates: Annotated[
        str,
        typer.Option(help="Loads by arrivals per second, such as 5,20.", rich_help_panel=WHAT),
    ] = "",
    requests: Annotated[
        int,
        typer.Option(
            min=1,
            help="Requests of each client, or of two seconds at a rate.",
            rich_help_panel=WHAT,
        ),
    ] = 8,
    prompt_tokens: PromptTokens = 32,
    output_tokens: OutputTokens = 32,
    engine: EngineOptions = None,
    peer: Peer = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Compare with our server with this engine option instead; repeatable.",
            rich_help_panel=HOW,
            show_default=False,
        ),
    ] = None,
    starts: Annotated[
        int, typer.Option(min=1, help="How often each server is started.", rich_help_panel=HOW)
    ] = 2,
    rounds: Annotated[
        int,
        typer.Option(min=1, help="How often all loads are run in one start.", rich_help_panel=HOW),
    ] = 2,
    together: Together = False,
    data_dir: DataDir = None,
    json_file: JsonFile = None,
    table_file: TableFile = None,
    plot_file: PlotFile = None,
    note: Note = "",
) -> None:
    """Our server under vLLM's serving benchmark; with `--peer vllm`, vLLM's own, interleaved.

    Both get the same engine settings, the same adapters and the same load. With `--against`, a
    setting is measured: our server without it and with it, interleaved.

    Example:  stacked bench online --base tiny --clients 16,64 --peer vllm --together
    """
    from stacked.bench.load import Lengths, loads_of
    from stacked.bench.online import Settings, run_online
    from stacked.bench.subject import engine_options

    with ends_well():
        loads = loads_of(clients, rates, requests)
        lengths = Lengths(prompt_tokens, output_tokens)
        other = engine_options(against or ())
        settings = Settings(loads, lengths, starts, rounds, is_peer(peer), together, other)
        measure(
            lambda subject, place, tell: run_online(subject, settings, place, tell),
            requested_of(base, adapter, rank, targets, engine),
            adapters,
            data_dir,
            (json_file, table_file, plot_file, note),
        )


@bench.command()
def start(
    base: Base = "smollm2-135m-instruct",
    adapter: AdapterDirs = None,
    groups: Annotated[
        str, typer.Option(help="Adapters in each group.", rich_help_panel=WHAT)
    ] = "1,50,500",
    rank: Rank = 4,
    targets: Targets = "attention",
    engine: EngineOptions = None,
    peer: Peer = None,
    rounds: Rounds = 1,
    data_dir: DataDir = None,
    json_file: JsonFile = None,
    table_file: TableFile = None,
    plot_file: PlotFile = None,
    note: Note = "",
) -> None:
    """Seconds from command to first token, cold and warm, for groups of several sizes.

    Example:  stacked bench start --groups 1,50 --peer vllm
    """
    from stacked.bench.start import Settings, groups_of, run_start

    with ends_well():
        settings = Settings(groups_of(groups), rounds, is_peer(peer))
        measure(
            lambda subject, place, tell: run_start(subject, settings, place, tell),
            requested_of(base, adapter, rank, targets, engine),
            max(settings.groups),
            data_dir,
            (json_file, table_file, plot_file, note),
        )


@bench.command()
def swap(
    config: Annotated[
        Path | None,
        typer.Argument(help="A YAML file; its members are the adapters.", show_default=False),
    ] = None,
    base: Base = "smollm2-135m-instruct",
    adapters: Annotated[
        int,
        typer.Option(min=1, help="Without a file: random adapters.", rich_help_panel=WHAT),
    ] = 6,
    rank: Rank = 64,
    targets: Targets = "all-linear",
    engine: EngineOptions = None,
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
    peer: Peer = None,
    data_dir: DataDir = None,
    json_file: JsonFile = None,
    table_file: TableFile = None,
    plot_file: PlotFile = None,
    note: Note = "",
) -> None:
    """LIVE updates under a storm of clients; every answer is compared with a fresh server's.

    Exits with 1 if an answer is lost, mixed, or of a version that was not live.

    With --gaps: how long streams of the first adapter wait between tokens, and for a first token,
    while a LIVE update loads the others; with --peer vllm, while vLLM's own server loads them.

    Example:  stacked bench swap configs/demo.yaml --updates 100 --clients 16

    Example:  stacked bench swap --gaps --adapters 6 --rank 64 --peer vllm
    """
    where: Outputs = (json_file, table_file, plot_file, note)
    with ends_well():
        requested = requested_of(base, None, rank, targets, engine)
        if gaps:
            from stacked.bench.gaps import Settings, run_gaps

            settings = Settings(streams, repeats, steady, is_peer(peer))
            measure(
                lambda subject, place, tell: run_gaps(subject, settings, place, tell),
                requested,
                adapters + 1,
                data_dir,
                where,
                config,
            )
        elif is_peer(peer):
            raise typer.BadParameter("the storm has no peer; --peer goes with --gaps")
        else:
            settings_of_storm = (updates, clients, groups, responses, max_tokens)
            storm(config, requested, adapters, settings_of_storm, data_dir, where)
