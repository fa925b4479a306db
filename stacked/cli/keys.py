"""The commands `stacked keys …`: making, listing, rotating and removing credentials."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stacked.cli.shared import HELP, DataDir, data_dir_of, fail

if TYPE_CHECKING:
    from stacked.keys import Created, Credential

keys = typer.Typer(
    name="keys",
    help="Credentials: make, list, rotate and remove them.",
    no_args_is_help=True,
    context_settings=HELP,
)


class Bits(StrEnum):
    """How long an RSA key may be."""

    SHORT = "2048"
    MIDDLE = "3072"
    LONG = "4096"


def _span(text: str) -> timedelta:
    from pydantic import TypeAdapter, ValidationError

    from stacked.config.fields import Duration

    try:
        span: timedelta = TypeAdapter(Duration).validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter("expected a number and a unit: 90s, 15m, 12h or 30d") from error
    if not span:  # "at once" and "never" are both likely to be meant
        raise typer.BadParameter("0 is no time; leave the option out if there is to be none")
    return span


def _option(name: str, help: str, **more: Any) -> Any:
    return typer.Option(f"--{name}", help=help, show_default=False, **more)


_OCI = {"rich_help_panel": "With --oci"}
_SPAN = {"parser": _span, "metavar": "12h|30d"}

Name = Annotated[str, typer.Argument(help="A name for the key: letters, digits, _ and -.")]
Number = int | None
Text = str | None


@keys.command()
def create(
    name: Name,
    data_dir: DataDir = None,
    admin: Annotated[bool, _option("admin", "It may do everything, not only use models.")] = False,
    allow: Annotated[
        Text, _option("allow", "It may use these models, and learn of no other.", metavar="KEY,…")
    ] = None,
    requests: Annotated[Number, _option("requests-per-minute", "", min=1)] = None,
    tokens: Annotated[Number, _option("tokens-per-minute", "Prompts and answers.", min=1)] = None,
    concurrency: Annotated[Number, _option("concurrency", "Requests in flight.", min=1)] = None,
    weight: Annotated[float, _option("weight", "Its share when requests wait.", min=0.001)] = 1,
    batch: Annotated[bool, _option("batch", "Its requests let those of others go first.")] = False,
    expires: Annotated[
        timedelta | None, _option("expires", "When it stops working.", **_SPAN)
    ] = None,
    force: Annotated[
        bool, _option("force", "Replace the key of this name, which stops working.")
    ] = False,
    oci: Annotated[bool, _option("oci", "A key with which OCI's SDKs sign, not a token.")] = False,
    inference_only: Annotated[
        bool, _option("inference-only", "It may only use models; else everything.", **_OCI)
    ] = False,
    tenancy: Annotated[Text, _option("tenancy", "An OCID. Default: one made up.", **_OCI)] = None,
    user: Annotated[Text, _option("user", "An OCID. Default: made from NAME.", **_OCI)] = None,
    region: Annotated[Text, _option("region", "For the SDK; no server checks it.", **_OCI)] = None,
    bits: Annotated[Bits, _option("bits", "The key's length.", **_OCI)] = Bits.SHORT,
) -> None:
    """Make a credential: a token that any client can send, or with --oci a signing key.

    The token is printed, and shown this once. It may only use models, unless --admin is given.

    Example:  stacked keys create alice --allow sql,triage --expires 30d
    """
    from pydantic import ValidationError

    from stacked.config import said_of
    from stacked.keys import REGION, Rights, create_signing
    from stacked.keys import create as make

    if (oci and admin) or (inference_only and not oci):
        raise typer.BadParameter("--admin is for tokens, and --inference-only for --oci")
    try:
        rights = Rights(
            admin=admin or (oci and not inference_only and allow is None),
            keys=None if allow is None else frozenset(map(str.strip, allow.split(","))),
            requests_per_minute=requests,
            tokens_per_minute=tokens,
            concurrency=concurrency,
            weight=weight,
            batch=batch,
            time_expires=datetime.now(UTC).replace(microsecond=0) + expires if expires else None,
        )
    except ValidationError as error:
        raise typer.BadParameter(said_of(error.errors()[0])) from error
    where = data_dir_of(data_dir)
    if not oci:
        _show(make(where, name, rights, force=force))
        return
    owner: dict[str, Any] = {"tenancy": tenancy, "user": user, "region": region or REGION}
    _show_signing(create_signing(where, name, rights, **owner, bits=int(bits.value), force=force))


@keys.command()
def rotate(
    name: Name,
    data_dir: DataDir = None,
    grace: Annotated[
        timedelta | None, _option("grace", "How long the old token works yet.", **_SPAN)
    ] = None,
) -> None:
    """Give a credential another token, with the same rights, and print it.

    Example:  stacked keys rotate alice --grace 1h
    """
    from stacked.keys import rotate as change

    _show(change(data_dir_of(data_dir), name, grace=grace or timedelta()))


@keys.command("list")
def list_(data_dir: DataDir = None) -> None:
    """List the credentials and what each may do.

    Example:  stacked keys list
    """
    from stacked.keys import keys_dir, read_directory
    from stacked.terminal import out, table

    found, faults = read_directory(keys_dir(data_dir_of(data_dir)))
    head = ["name", "kind", "may do", "keys", "limits", "created", "expires"]
    out.print(table(head, [_row(each) for each in found]))
    if faults:
        fail("KeyFileInvalid", "; ".join(faults))


@keys.command()
def remove(name: Name, data_dir: DataDir = None) -> None:
    """Remove a credential: a running server refuses it from the next request on.

    Example:  stacked keys remove alice
    """
    from stacked.keys import remove as forget
    from stacked.terminal import out

    forget(data_dir_of(data_dir), name)
    out.print(f"key {name} is removed", markup=False, highlight=False)


def _show(token: str) -> None:
    from stacked.terminal import err, out

    out.print(token, markup=False, highlight=False, soft_wrap=True)
    err.print("This is shown once. Clients send it as their API key.")


def _show_signing(made: Created) -> None:
    from stacked.terminal import out

    for line in (
        f'config = oci.config.from_file("{made.sdk_config}")',
        'client = oci.data_science.DataScienceClient(config, service_endpoint="http://127.0.0.1:8080")',
        f"# key id {made.principal}; the private key is {made.private}",
    ):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _row(one: Credential) -> list[str]:
    much = one.caller.allowance
    limits = {
        "requests/min": much.requests_per_minute,
        "tokens/min": much.tokens_per_minute,
        "in flight": much.concurrency,
        "weight": None if one.caller.weight == 1 else f"{one.caller.weight:g}",
    }
    over = one.expires is not None and one.expires <= datetime.now(UTC)
    shown = [f"{count} {what}" for what, count in limits.items() if count]
    return [
        one.name,
        f"OCI {one.public.principal.user}" if one.public else f"token {one.secrets[0].id}",
        "all" if one.caller.admin else "inference",
        "all" if one.caller.keys is None else ", ".join(sorted(one.caller.keys)),
        ", ".join([*shown, *["batch"] * one.caller.batch]),
        f"{one.created:%Y-%m-%d %H:%M}" if one.created else "",
        (f"{one.expires:%Y-%m-%d %H:%M}" + " (over)" * over) if one.expires else "",
    ]
