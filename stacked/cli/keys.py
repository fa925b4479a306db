"""The commands `stacked keys …`: making, listing and removing the keys that sign requests."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from stacked.cli.shared import HELP, DataDir, data_dir_of, fail, optional

keys = typer.Typer(
    name="keys",
    help="Keys that sign requests: make, list and remove them.",
    no_args_is_help=True,
    context_settings=HELP,
)

Name = Annotated[str, typer.Argument(help="A name for the key: letters, digits, _ and -.")]


class Bits(StrEnum):
    """How long an RSA key may be."""

    SHORT = "2048"
    MIDDLE = "3072"
    LONG = "4096"


@keys.command()
def create(
    name: Name,
    oci: Annotated[bool, typer.Option("--oci", help="A key for OCI's SDKs.")] = False,
    data_dir: DataDir = None,
    tenancy: Annotated[str | None, optional(help="An OCID. Default: one made up.")] = None,
    user: Annotated[str | None, optional(help="An OCID. Default: made from NAME.")] = None,
    region: Annotated[
        str | None, optional(help="The region in the SDK's file; no server checks it.")
    ] = None,
    bits: Annotated[Bits, typer.Option(help="The key's length.")] = Bits.SHORT,
    inference_only: Annotated[
        bool, typer.Option("--inference-only", help="The key may only send requests to models.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the key of this name, which stops working.")
    ] = False,
) -> None:
    """Make a signing key, register its public half, and write a config file for OCI's SDKs.

    Example:  stacked keys create alice --oci
    """
    from stacked.keys import REGION
    from stacked.keys import create as make
    from stacked.terminal import out

    if not oci:
        raise typer.BadParameter("say what the key is for; only --oci is served")
    made = make(
        data_dir_of(data_dir),
        name,
        tenancy=tenancy,
        user=user,
        region=region or REGION,
        bits=int(bits.value),
        inference_only=inference_only,
        force=force,
    )
    for line in (
        f'config = oci.config.from_file("{made.sdk_config}")',
        'client = oci.data_science.DataScienceClient(config, service_endpoint="http://127.0.0.1:8080")',
        f"# key id {made.principal}; the private key is {made.private}",
    ):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


@keys.command("list")
def list_(data_dir: DataDir = None) -> None:
    """List the registered keys.

    Example:  stacked keys list
    """
    from stacked.keys import keys_dir, read_directory
    from stacked.terminal import out, table

    found, faults = read_directory(keys_dir(data_dir_of(data_dir)))
    rows = [
        [
            each.name,
            each.principal.user,
            each.principal.fingerprint,
            "inference" if each.inference_only else "all",
            f"{each.created:%Y-%m-%d %H:%M}" if each.created else "",
        ]
        for each in found
    ]
    out.print(table(["name", "user", "fingerprint", "may do", "created"], rows))
    if faults:
        fail("KeyFileInvalid", "; ".join(faults))


@keys.command()
def remove(name: Name, data_dir: DataDir = None) -> None:
    """Remove a key: a running server refuses it within a second.

    Example:  stacked keys remove alice
    """
    from stacked.keys import remove as forget
    from stacked.terminal import out

    forget(data_dir_of(data_dir), name)
    out.print(f"key {name} is removed", markup=False, highlight=False)
