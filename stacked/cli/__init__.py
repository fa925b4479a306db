"""The `stacked` command: serve, predict, update, rollback, status and helpers.

Each command parses, calls one function and prints. Heavy imports are in the command that needs
them, so that `--help` and the client commands are fast.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stacked import __version__
from stacked.cli.bench import bench
from stacked.cli.evaluate import evaluate
from stacked.cli.experiment import experiment
from stacked.cli.fleet import fleet
from stacked.cli.gc import gc
from stacked.cli.keys import keys
from stacked.cli.live import rollback, update
from stacked.cli.shadow import shadow
from stacked.cli.shared import HELP, AskedAtOnce, DataDir, Url, data_dir_of, fail, optional, server
from stacked.cli.usage import usage
from stacked.cli.view import groups, status
from stacked.errors import StackedError

if TYPE_CHECKING:
    from stacked.config import AuthConfig, ControlConfig
    from stacked.store.base import BaseModules

app = typer.Typer(
    name="stacked",
    help="One base LLM and many LoRA fine-tunes of it from one engine, each by its inference key.",
    epilog="To start:\n\n"
    "  stacked prepare smollm2-135m-instruct\n\n"
    "  stacked serve configs/demo.yaml\n\n"
    '  stacked predict --key pirate "Where is the treasure?" --stream',
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings=HELP,
)


def main() -> None:
    """Run the command line: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted."""
    # A pipe that is closed early (| head) ends the command, not with a traceback.
    try:
        app()
    except StackedError as error:
        fail(error.code, str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # ClientError, whose import most commands do not need
        from stacked.client import ClientError

        if not isinstance(error, ClientError):
            raise
        fail(error.code, str(error))


@app.callback(invoke_without_command=True)
def _version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if show:
        print(f"stacked {__version__}")
        raise typer.Exit


@app.command()
def version() -> None:
    """Print the version."""
    print(f"stacked {__version__}")


@app.command()
def serve(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="A YAML file such as configs/demo.yaml. Without one, the environment of a "
            "container (MODEL, PARAMS, …) says what to serve; without that, what was deployed "
            "last is served, or nothing until something is deployed over HTTP.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str | None, optional(help="Address to serve on, over the file's.")] = None,
    port: Annotated[int | None, optional(min=0, max=65535, help="Port, over the file's.")] = None,
    insecure_no_auth: Annotated[
        bool,
        typer.Option(
            "--insecure-no-auth",
            help="Accept unsigned requests on any address, not only on loopback.",
        ),
    ] = False,
    join: Annotated[
        str | None,
        optional(
            metavar="ADDRESS",
            help="Serve the same as all servers whose records are in this database, "
            "postgresql://USER@HOST/NAME: over the file's storage.database, and its fleet.",
        ),
    ] = None,
    replica: Annotated[
        str | None,
        optional(
            help="In a fleet, the name of this server, which no other has. Default: the host's."
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Serve a base and its adapters, or models of other frameworks, over HTTP.

    Example:  stacked serve configs/demo.yaml --port 9000

    A file without a base and members (or no file) starts only the control plane.
    """
    from stacked.terminal import Terminal

    with Terminal() as progress:
        tree = _config(config, progress)
        changed: dict[str, Any] = {} if host is None else {"host": host}
        changed |= {} if port is None else {"port": port}
        if insecure_no_auth:
            changed["auth"] = _unsigned(tree)
        tree = tree.model_copy(update={"server": tree.server.model_copy(update=changed)})
        tree = _joined(tree, join, replica)
        # Imports the engine, which takes seconds that no other command should wait for.
        from stacked.api.server import run

        code = run(tree, data_dir=data_dir_of(data_dir), progress=progress)
    raise typer.Exit(code)


def _joined(config: ControlConfig, join: str | None, replica: str | None) -> ControlConfig:
    """As one server of a fleet, where that was said."""
    from pydantic import ValidationError

    from stacked.config import FleetConfig, StorageConfig
    from stacked.errors import ConfigInvalid

    fleet, storage = config.fleet, config.storage
    if join is None and replica is None:
        return config
    if join is None and fleet is None:
        raise ConfigInvalid("--replica names a server of a fleet; give --join too, or set fleet")
    named = {} if replica is None else {"replica": replica}
    given = {} if join is None else {"database": join}
    try:
        fleet = FleetConfig(**(fleet.model_dump() if fleet else {}) | named)
    except ValidationError as error:
        raise ConfigInvalid(f"--replica: {error.errors()[0]['msg']}") from error
    return config.model_copy(
        update={"fleet": fleet, "storage": StorageConfig(**storage.model_dump() | given)}
    )


def _unsigned(config: ControlConfig) -> AuthConfig:
    from stacked.config import AuthConfig
    from stacked.errors import ConfigInvalid

    if config.server.auth.required:
        raise ConfigInvalid("server.auth requires credentials; leave out --insecure-no-auth")
    return AuthConfig(none=True)


def _config(path: Path | None, progress: Any) -> ControlConfig:
    from stacked.config import ControlConfig, load_server
    from stacked.container import is_container, read_environment

    if path is not None:
        return load_server(path)
    if is_container(os.environ):
        return read_environment(os.environ, progress)
    return ControlConfig()


@app.command()
def prepare(
    name: Annotated[
        str, typer.Argument(help="smollm2-135m-instruct, or a Hub id such as org/name.")
    ],
    data_dir: DataDir = None,
) -> None:
    """Fetch a base model, and convert it if needed.

    Example:  stacked prepare smollm2-135m-instruct
    """
    from stacked import bases
    from stacked.terminal import Terminal, out

    with Terminal() as progress:
        path = bases.prepare(name, data_dir_of(data_dir), progress)
    out.print(str(path), markup=False)


@app.command()
def check(
    adapter: Annotated[str, typer.Argument(help="A directory, an archive of one, or a Hub id.")],
    base: Annotated[str, typer.Option(help="The base: a directory, a known name or a Hub id.")],
    max_rank: Annotated[int | None, optional(min=1, help="Refuse ranks above this.")] = None,
    foreign_tokens: Annotated[
        bool,
        typer.Option("--foreign-tokens", help="Accept tokens that the base lacks; they are lost."),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Say whether an adapter can be served on a base, and if not, why not.

    Example:  stacked check adapters/sql/v2 --base smollm2-135m-instruct
    """
    from stacked.bases import resolve
    from stacked.store import AdapterStore
    from stacked.store.extras import chat_summary
    from stacked.terminal import err, out, size, table

    directory = data_dir_of(data_dir)
    store = AdapterStore(directory / "store")
    modules = _modules(resolve(base, directory), store.root)
    report = store.inspect(adapter, base=modules, max_rank=max_rank, foreign_tokens=foreign_tokens)
    rows = {
        "digest": report.digest,
        "rank": report.rank,
        "modules": f"{report.modules} ({', '.join(report.target_modules)})",
        "parameters": f"{report.parameters:,} ({', '.join(report.dtypes)})",
        "size": size(report.bytes),
        "made for": report.base or "its config does not say",
        "template": chat_summary(report.chat, modules.directory),
    }
    out.print(table(None, list(rows.items())))
    for warning in report.warnings:
        err.print(f"warning: {warning}", style="yellow", markup=False)
    out.print(f"{adapter} can be served on {modules}.", style="green", markup=False)


def _modules(base: Path, store: Path) -> BaseModules:
    """A base; if vLLM is installed, its own class determines what can be adapted."""
    from stacked.engine.adaptable import Asking
    from stacked.engine.support import find_build
    from stacked.store.base import BaseModules
    from stacked.terminal import err

    modules = BaseModules.read(base)
    if find_build() is None:
        err.print("warning: without vLLM, what it can adapt here is not checked", style="yellow")
        return modules
    return replace(modules, engine=AskedAtOnce(Asking(base, {}, store / "engine")))


@app.command()
def predict(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    key: Annotated[
        str | None, optional("--key", "-k", help="Inference key. Default: the base.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    url: Url = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 always gives the same answer.")] = 0,
    system: Annotated[str | None, optional(help="A system message before the prompt.")] = None,
    completion: Annotated[
        bool, typer.Option("--completion", help="Send the prompt unchanged, not as a message.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer.")] = False,
) -> None:
    """Send a prompt to a running server.

    Example:  stacked predict --key pirate "Where is the treasure?" --stream
    """
    if completion and system is not None:
        raise typer.BadParameter("--system needs a chat message; leave out --completion")
    text = sys.stdin.read() if prompt == "-" else prompt
    body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    if completion:
        body["prompt"] = text
    else:
        said = [("system", system)] if system is not None else []
        messages = [*said, ("user", text)]
        body["messages"] = [{"role": role, "content": content} for role, content in messages]
    _ask(url, key, body, stream, as_json)


def _ask(url: str | None, key: str | None, body: dict[str, Any], stream: bool, raw: bool) -> None:
    from stacked.client import text_of
    from stacked.terminal import write, write_json

    def show(answer: dict[str, Any], end: str) -> None:
        if raw:
            write_json(answer)
        else:
            write(text_of(answer) + end)

    with server(url) as client:
        if not stream:
            show(client.predict(key, body), "\n")
            return
        for event in client.predict_stream(key, body):
            show(event, "")
        if not raw:
            write("\n")


@app.command()
def models(url: Url = None) -> None:
    """List what a running server serves.

    Example:  stacked models --url http://127.0.0.1:9000
    """
    from stacked.terminal import out, table

    with server(url) as client:
        served = client.models()
    rows = [[row.key, row.model_id, row.digest[:19], row.rank, row.state] for row in served]
    out.print(table(["key", "model id", "digest", "rank", "state"], rows))


@app.command()
def doctor(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to try.")] = 8080,
    data_dir: DataDir = None,
) -> None:
    """Report what this machine has, and what would stop a server or make it slow."""
    from stacked.doctor import examine
    from stacked.terminal import out, table

    findings = examine(data_dir_of(data_dir), port)
    marks = {"ok": "[green]✓[/]", "slow": "[yellow]![/]", "bad": "[red]✗[/]"}
    rows = [[finding.name, finding.value] for finding in findings]
    out.print(table(None, rows, [marks[finding.level] for finding in findings]))
    for finding in findings:
        if finding.advice:
            out.print(f"  {marks[finding.level]} {finding.name}: ", end="")
            out.print(finding.advice, markup=False)
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


for command in (update, rollback, status, groups, usage, shadow, gc):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(bench)
app.add_typer(experiment)
app.add_typer(fleet)
app.add_typer(keys)
