"""Making and removing keys: the public half in a directory, the private one with an SDK's file.

Files are written atomically, and readable only by their owner.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from stacked.errors import KeyFileInvalid
from stacked.keys.public import MIN_BITS, Principal, fingerprint, keys_dir

REGION = "us-ashburn-1"
TENANCY = "ocid1.tenancy.oc1..stacked"

# The last line of a key file for OCI: its command line warns if it is missing.
_LABEL = b"OCI_API_KEY\n"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_REGION = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Created:
    """The files that `create` has written, and their principal."""

    principal: Principal
    public: Path
    private: Path
    sdk_config: Path


def create(
    data_dir: Path,
    name: str,
    *,
    tenancy: str | None = None,
    user: str | None = None,
    region: str = REGION,
    bits: int = MIN_BITS,
    inference_only: bool = False,
    force: bool = False,
) -> Created:
    """Make a key: public half in `keys/NAME.json`, private half and SDK file in `clients/NAME/`.

    `force` replaces one of that name, which then stops working. Raises KeyFileInvalid.
    """
    _check_name(name)
    if not _REGION.fullmatch(region):
        raise KeyFileInvalid(f"not the name of a region: {region[:80]!r}")
    public = keys_dir(data_dir) / f"{name}.json"
    client = _clients_dir(data_dir) / name
    if not force and (os.path.lexists(public) or os.path.lexists(client)):
        raise KeyFileInvalid(f"there is a key {name!r} already; --force replaces it")
    private = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    try:
        principal = Principal.parse(
            f"{tenancy or TENANCY}/{user or f'ocid1.user.oc1..{name}'}/"
            f"{fingerprint(private.public_key())}"
        )
    except ValueError as error:
        raise KeyFileInvalid(str(error)) from error
    with _told(data_dir):
        for directory in (public.parent, client.parent):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            directory.chmod(0o700)
        sdk_config = _write_client(client, private, principal, region)
        text = _registered(principal, private.public_key(), inference_only)
        _write(public, text.encode())
    return Created(principal, public, client / "key.pem", sdk_config)


def remove(data_dir: Path, name: str) -> None:
    """Remove a key, and its private half if it is still here. Raises KeyFileInvalid."""
    _check_name(name)
    public, client = keys_dir(data_dir) / f"{name}.json", _clients_dir(data_dir) / name
    if not os.path.lexists(public) and not os.path.lexists(client):
        raise KeyFileInvalid(f"there is no key {name!r}; `stacked keys list` shows them")
    with _told(data_dir):
        public.unlink(missing_ok=True)  # first, as this invalidates the key
        if client.is_dir():
            shutil.rmtree(client)


def _registered(principal: Principal, key: rsa.RSAPublicKey, inference_only: bool) -> str:
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    tree = {
        "tenancy": principal.tenancy,
        "user": principal.user,
        "fingerprint": principal.fingerprint,
        "publicKey": pem.decode(),
        "timeCreated": datetime.now(UTC).isoformat(timespec="seconds"),
        "inferenceOnly": inference_only,
    }
    return json.dumps(tree, indent=2) + "\n"


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
        _write(made / "key.pem", pem + _LABEL)
        _write(made / "config", f"[DEFAULT]\n{text}".encode())
        if client.is_dir():
            shutil.rmtree(client)
        made.rename(client)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return client / "config"


def _write(path: Path, content: bytes) -> None:
    """Write atomically, readable only by the owner."""
    number, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # of mode 0600
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _clients_dir(data_dir: Path) -> Path:
    return data_dir / "clients"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise KeyFileInvalid(
            f"{name[:80]!r} is not a name for a key; use at most 64 letters, digits, _ and -, "
            "beginning with a letter or digit"
        )


@contextlib.contextmanager
def _told(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KeyFileInvalid(
            f"keys cannot be written below {data_dir} ({error.strerror or error})"
        ) from error
