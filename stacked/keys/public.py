"""Public keys: their owners and ids, and reading them from files.

A key's id is `tenancy/user/fingerprint`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from stacked.callers import Caller
from stacked.errors import KeyFileInvalid

MIN_BITS, MAX_BITS = 2048, 8192

_OWNER = re.compile(r"[0-9A-Za-z_-]+[.:](?:[0-9A-Za-z_-]*[.:]){3,}[0-9A-Za-z_-]+")
_FINGERPRINT = re.compile(r"(?:[0-9a-f]{2}:){15}[0-9a-f]{2}")
_MOST_BYTES = 64 * 1024  # of a key file; one of MAX_BITS is far smaller


@dataclass(frozen=True, slots=True)
class Principal:
    """The principal of a key. `str()` is the key id of a signature."""

    tenancy: str
    user: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.tenancy}/{self.user}/{self.fingerprint}"

    @classmethod
    def parse(cls, key_id: str) -> Principal:
        """Raises ValueError for anything but `tenancy/user/fingerprint`."""
        parts = key_id.split("/")
        if len(parts) != 3 or not all(parts):
            raise ValueError("a key id is tenancy/user/fingerprint")
        tenancy, user, print_ = parts
        for what, text in (("tenancy", tenancy), ("user", user)):
            if len(text) > 255 or not _OWNER.fullmatch(text):
                raise ValueError(f"not an OCID for a {what}: {text[:80]!r}")
        if not _FINGERPRINT.fullmatch(print_):
            raise ValueError(f"not a fingerprint (16 hex pairs with colons): {print_[:80]!r}")
        return cls(tenancy, user, print_)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The half that the server keeps. `name` is the file's; empty for a key of the config."""

    principal: Principal
    key: rsa.RSAPublicKey
    name: str = ""
    created: datetime | None = None
    inference_only: bool = False
    """Whether it may only send requests to models."""

    @property
    def caller(self) -> Caller:
        """Whoever signs with it."""
        user = self.principal.user
        return Caller(self.name or user, user=user, admin=not self.inference_only)


def fingerprint(key: rsa.RSAPublicKey) -> str:
    """MD5 over the DER form of the public key, as 16 hex pairs: a name, not a protection."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.md5(der, usedforsecurity=False).digest().hex(":")


def read_public(pem: bytes) -> rsa.RSAPublicKey:
    """An RSA public key from its PEM. Raises ValueError with the reason; never shows the text."""
    if b"PRIVATE KEY" in pem:
        raise ValueError("this is a private key; the server only takes public keys")
    try:
        key = serialization.load_pem_public_key(pem.strip())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("this is not a public key in PEM form") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise ValueError("this is not an RSA key")
    if not MIN_BITS <= key.key_size <= MAX_BITS:
        raise ValueError(f"an RSA key has {MIN_BITS} to {MAX_BITS} bits, this one {key.key_size}")
    return key


def keys_dir(data_dir: Path) -> Path:
    """The directory of the public halves, one file per key."""
    return data_dir / "keys"


def read_directory(directory: Path) -> tuple[list[PublicKey], list[str]]:
    """The keys of a directory by name, and a message for each file that is not a key.

    A missing directory has none. Raises KeyFileInvalid if it cannot be read.
    """
    found, faults = [], []
    for path in _files(directory):
        try:
            found.append(_read(path))
        except FileNotFoundError:  # removed meanwhile
            continue
        except (OSError, ValueError) as error:
            faults.append(f"{path}: {error}")
    return found, faults


def stamp(directory: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Changes when any key of the directory does: names, inodes, times and sizes of its files."""
    seen = []
    for path in _files(directory):
        with contextlib.suppress(FileNotFoundError):
            said = path.stat()
            seen.append((path.name, said.st_ino, said.st_mtime_ns, said.st_size))
    return tuple(seen)


def _files(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.suffix == ".json")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KeyFileInvalid(f"{directory} cannot be read ({error.strerror})") from error


def _read(path: Path) -> PublicKey:
    with path.open("rb") as file:
        tree = json.loads(file.read(_MOST_BYTES))
    if not isinstance(tree, dict):
        raise ValueError("not a key that `stacked keys create` has written")
    texts = [tree.get(name) for name in ("tenancy", "user", "publicKey", "timeCreated")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("tenancy, user, publicKey or timeCreated is missing")
    inference_only = tree.get("inferenceOnly")
    if not isinstance(inference_only, bool):  # an unclear value must not grant more
        raise ValueError("inferenceOnly must be true or false")
    tenancy, user, pem, created = map(str, texts)
    key = read_public(pem.encode())
    principal = Principal.parse(f"{tenancy}/{user}/{fingerprint(key)}")
    when = datetime.fromisoformat(created)
    return PublicKey(principal, key, path.stem, when, inference_only)
