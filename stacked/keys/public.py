"""Public keys: their owners and ids, and reading them.

A key's id is `tenancy/user/fingerprint`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

MIN_BITS, MAX_BITS = 2048, 8192

_OWNER = re.compile(r"[0-9A-Za-z_-]+[.:](?:[0-9A-Za-z_-]*[.:]){3,}[0-9A-Za-z_-]+")
_FINGERPRINT = re.compile(r"(?:[0-9a-f]{2}:){15}[0-9a-f]{2}")


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
    """The half that the server keeps."""

    principal: Principal
    key: rsa.RSAPublicKey


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
