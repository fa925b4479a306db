"""Signing keys, as files: making and removing them, and reading the public halves.

It must not know requests, HTTP or the engine.
"""

from stacked.keys.making import REGION, Created, create, remove
from stacked.keys.public import (
    Principal,
    PublicKey,
    fingerprint,
    keys_dir,
    read_directory,
    read_public,
    stamp,
)

__all__ = [
    "REGION",
    "Created",
    "Principal",
    "PublicKey",
    "create",
    "fingerprint",
    "keys_dir",
    "read_directory",
    "read_public",
    "remove",
    "stamp",
]
