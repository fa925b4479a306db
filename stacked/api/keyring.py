"""The public keys that a running server knows: those of its config, and those of a directory.

A change of the directory is seen without a restart. It must not know signatures or requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from stacked.callers import NOBODY, Caller
from stacked.errors import ConfigInvalid, StackedError
from stacked.keys import Principal, PublicKey, fingerprint, read_directory, read_public, stamp

logger = logging.getLogger("stacked.api")

# How long a removed key may still work, and a new one remain unknown.
LOOK_SECONDS = 1.0
LOOK_AGAIN_SECONDS = 0.1


class KeyRing:
    """Key id to public key. Raises ConfigInvalid for what cannot be a key when it is made."""

    def __init__(
        self,
        given: Mapping[str, str],
        directory: Path | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`given`: key id to a PEM or to the path of one. `directory` may not be there yet."""
        self.directory = directory
        self._given = dict(_configured(key_id, text) for key_id, text in given.items())
        self._clock = clock
        self._looked = clock()
        self._stamp = stamp(directory) if directory else ()
        self._found, faults = _of_directory(directory)
        if faults:
            raise ConfigInvalid(f"server.auth.oci.directory: {faults[0]}")

    def __len__(self) -> int:
        return len(self._given.keys() | self._found.keys())

    def find(self, key_id: str) -> RSAPublicKey | None:
        """The key with the id `tenancy/user/fingerprint`; a new one is found too."""
        known = self._given.get(key_id)
        if known is not None:
            return known.key
        rest = LOOK_SECONDS if key_id in self._found else LOOK_AGAIN_SECONDS
        if self._clock() - self._looked >= rest:
            self._look()
        found = self._found.get(key_id)
        return found.key if found else None

    def caller(self, principal: Principal) -> Caller:
        """Whoever signs with a key that was found."""
        known = self._given.get(str(principal)) or self._found.get(str(principal))
        return known.caller if known else NOBODY

    def _look(self) -> None:
        if self.directory is None:
            return
        self._looked = self._clock()
        try:
            now = stamp(self.directory)
            if now == self._stamp:
                return
            found, faults = _of_directory(self.directory)
        except StackedError as error:
            # A file that cannot be read authenticates no one.
            now, found, faults = (), {}, [str(error)]
        self._stamp, self._found = now, found
        for fault in faults:
            logger.warning("a key is left out: %s", fault)


def _of_directory(directory: Path | None) -> tuple[dict[str, PublicKey], list[str]]:
    if directory is None:
        return {}, []
    found, faults = read_directory(directory)
    return {str(each.principal): each for each in found}, faults


def _configured(key_id: str, text: str) -> tuple[str, PublicKey]:
    place = f"server.auth.oci.keys: {key_id[:120]!r}"
    try:
        pem = text.encode() if "-----BEGIN" in text else Path(text).read_bytes()
        key = read_public(pem)
        principal = Principal.parse(key_id)
    except OSError as error:
        raise ConfigInvalid(f"{place}: {text[:120]} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigInvalid(f"{place}: {error}") from error
    if principal.fingerprint != fingerprint(key):
        raise ConfigInvalid(f"{place}: the key's fingerprint is {fingerprint(key)}")
    return str(principal), PublicKey(principal, key)
