"""Credentials, as files: bearer tokens and signing keys, and what each of them may do.

It must not know requests, HTTP or the engine.
"""

from stacked.keys.files import (
    Credential,
    Rights,
    Scan,
    keys_dir,
    read_directory,
    scan,
    sorted_out,
)
from stacked.keys.making import REGION, Created, create, create_signing, remove, rotate
from stacked.keys.public import Principal, PublicKey, fingerprint, read_public

__all__ = [
    "REGION",
    "Created",
    "Credential",
    "Principal",
    "PublicKey",
    "Rights",
    "Scan",
    "create",
    "create_signing",
    "fingerprint",
    "keys_dir",
    "read_directory",
    "read_public",
    "remove",
    "rotate",
    "scan",
    "sorted_out",
]
