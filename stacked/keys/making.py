"""Making, rotating and removing credentials.

A token is shown once, and its hash stored. Of a signing key the public half is stored where the
server looks, and the private one with a file for OCI's SDKs.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from stacked.errors import KeyFileInvalid
from stacked.keys import tokens
from stacked.keys.files import (
    File,
    Rights,
    check_name,
    keys_dir,
    make_private,
    read_file,
    write,
    writing,
)
from stacked.keys.public import MIN_BITS, Principal, fingerprint

SERVING, ADMIN = Rights(), Rights(admin=True)
REGION = "us-ashburn-1"
TENANCY = "ocid1.tenancy.oc1..stacked"

# The last line of a key file for OCI: its command line warns if it is missing.
_LABEL = b"OCI_API_KEY\n"
_REGION = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Created:
    """The files that `create` has written, and their principal."""

    principal: Principal
    public: Path
    private: Path
    sdk_config: Path


def create(data_dir: Path, name: str, rights: Rights = SERVING, *, force: bool = False) -> str:
    """Make a credential in `keys/NAME.json`; its token, which is stored nowhere.

    `force` replaces the one of that name, which then stops working. Raises KeyFileInvalid.
    """
    _check_free(data_dir, name, force)
    token, secret = tokens.make()
    _store(data_dir, name, _file(rights, secrets=(secret,)))
    if (client := _clients_dir(data_dir) / name).is_dir():  # of a signing key that was replaced
        shutil.rmtree(client)
    return token


def rotate(data_dir: Path, name: str, *, grace: timedelta = timedelta()) -> str:
    """Give a credential another token, and return it; the old one works for `grace` yet.

    Raises KeyFileInvalid.
    """
    place = keys_dir(data_dir) / f"{check_name(name)}.json"
    try:
        file = read_file(place)
    except FileNotFoundError as error:
        raise _no_key(name) from error
    except ValueError as error:
        raise KeyFileInvalid(f"{place} is not the file of a credential") from error
    if not file.secrets:
        raise KeyFileInvalid(
            f"{name!r} is a signing key; `stacked keys create {name} --oci --force` replaces it"
        )
    token, secret = tokens.make()
    now = datetime.now(UTC)
    if tokens.is_over(file.time_expires, now):
        raise KeyFileInvalid(
            f"{name!r} has expired; `stacked keys create {name} --force` makes a new one"
        )
    last = file.secrets[0].until(now + grace)
    kept = (last,) if grace else ()
    _store(data_dir, name, file.model_copy(update={"secrets": (secret, *kept)}))
    return token


def create_signing(
    data_dir: Path,
    name: str,
    rights: Rights = ADMIN,
    *,
    tenancy: str | None = None,
    user: str | None = None,
    region: str = REGION,
    bits: int = MIN_BITS,
    force: bool = False,
) -> Created:
    """Make a key: public half in `keys/NAME.json`, private half and SDK file in `clients/NAME/`.

    `force` replaces one of that name, which then stops working. Raises KeyFileInvalid.
    """
    if not _REGION.fullmatch(region):
        raise KeyFileInvalid(f"not the name of a region: {region[:80]!r}")
    _check_free(data_dir, name, force)
    client = _clients_dir(data_dir) / name
    private = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    key = private.public_key()
    try:
        principal = Principal.parse(
            f"{tenancy or TENANCY}/{user or f'ocid1.user.oc1..{name}'}/{fingerprint(key)}"
        )
    except ValueError as error:
        raise KeyFileInvalid(str(error)) from error
    with writing(data_dir):
        make_private(client.parent)
        sdk_config = _write_client(client, private, principal, region)
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    public = _store(
        data_dir,
        name,
        _file(
            rights,
            tenancy=principal.tenancy,
            user=principal.user,
            fingerprint=principal.fingerprint,
            public_key=pem.decode(),
        ),
    )
    return Created(principal, public, client / "key.pem", sdk_config)


def remove(data_dir: Path, name: str) -> None:
    """Remove a credential, and a private half that is still here. Raises KeyFileInvalid."""
    place = keys_dir(data_dir) / f"{check_name(name)}.json"
    client = _clients_dir(data_dir) / name
    if not os.path.lexists(place) and not os.path.lexists(client):
        raise _no_key(name)
    with writing(data_dir):
        place.unlink(missing_ok=True)  # first, as this invalidates the key
        if client.is_dir():
            shutil.rmtree(client)


def _no_key(name: str) -> KeyFileInvalid:
    return KeyFileInvalid(f"there is no key {name!r}; `stacked keys list` shows them")


def _check_free(data_dir: Path, name: str, force: bool) -> None:
    check_name(name)
    places = (keys_dir(data_dir) / f"{name}.json", _clients_dir(data_dir) / name)
    if not force and any(map(os.path.lexists, places)):
        raise KeyFileInvalid(f"there is a key {name!r} already; --force replaces it")


def _file(rights: Rights, **kind: object) -> File:
    now = datetime.now(UTC).replace(microsecond=0)
    return File.model_validate({**rights.model_dump(), "time_created": now, **kind})


def _store(data_dir: Path, name: str, file: File) -> Path:
    place = keys_dir(data_dir) / f"{name}.json"
    with writing(data_dir):
        make_private(place.parent)
        write(place, file.text().encode())
    return place


def _write_client(
    client: Path, private: rsa.RSAPrivateKey, principal: Principal, region: str
) -> Path:
    """Write the private key and the SDK's file, replacing earlier ones completely."""
    made = Path(tempfile.mkdtemp(dir=client.parent, prefix=".new-"))
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    lines = {
        "user": principal.user,
        "fingerprint": principal.fingerprint,
        "tenancy": principal.tenancy,
        "region": region,
        "key_file": str(client.absolute() / "key.pem"),
    }
    text = "".join(f"{name}={value}\n" for name, value in lines.items())
    try:
        write(made / "key.pem", pem + _LABEL)
        write(made / "config", f"[DEFAULT]\n{text}".encode())
        if client.is_dir():
            shutil.rmtree(client)
        made.rename(client)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return client / "config"


def _clients_dir(data_dir: Path) -> Path:
    return data_dir / "clients"
