"""The credentials that a running server knows: those of its config, and those of a directory.

A change of the directory is seen without a restart. It must not know requests.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from stacked.callers import Caller
from stacked.errors import ConfigInvalid, NotAuthenticated, StackedError
from stacked.keys import (
    Credential,
    Principal,
    PublicKey,
    Rights,
    Scan,
    fingerprint,
    read_public,
    scan,
    sorted_out,
)
from stacked.keys.tokens import NO_SECRET, Secret, digest_of, id_of, is_over

logger = logging.getLogger("stacked.api")

# Files that somebody edits in place are looked at this often. `stacked keys` replaces and removes
# them, which changes the directory itself: that is looked at for each request, in 3 microseconds.
LOOK_SECONDS = 1.0
# Times of files advance in steps, of 10 ms at most: a directory that changed just now may change
# once more and have the same time.
_STEP_NS = 50_000_000


class KeyRing:
    """Finds credentials. Raises ConfigInvalid for what cannot be one when it is made."""

    def __init__(
        self,
        given: Mapping[str, str],
        directory: Path,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`given`: key id to a PEM or to the path of one. `directory` may not be there yet.

        `clock` gives seconds since the epoch.
        """
        self.directory = directory
        self._clock = clock
        self._given = dict(_configured(key_id, text) for key_id, text in given.items())
        self._signing: Mapping[str, Credential] = {}
        self._secrets: Mapping[str, tuple[Credential, Secret]] = {}
        self._scan: Scan = {}
        self._top: int | None = None
        self._look_at = 0.0
        self._use({})
        if faults := self._look():
            raise ConfigInvalid(f"server.auth.directory: {faults[0]}")

    def __len__(self) -> int:
        tokens = {each.name for each, _ in self._secrets.values()}
        return len(self._signing) + len(tokens)

    def signing(self, key_id: str) -> RSAPublicKey | None:
        """The key with the id `tenancy/user/fingerprint`."""
        self._refresh()
        found = self._signing.get(key_id)
        return found.public.key if found and found.public else None

    def signer(self, principal: Principal) -> Caller:
        """Whoever signs with a key that was found. Raises NotAuthenticated if it has expired."""
        return self._valid(self._signing[str(principal)])

    def bearer(self, token: str) -> Caller:
        """Whoever has this token. Raises NotAuthenticated.

        An unknown id takes the way of a known one, so that the time does not say which ids exist.
        """
        self._refresh()
        id = id_of(token)
        if id is None:
            raise NotAuthenticated(
                "the token is not one of `stacked keys create` (stk_…), or a part of it is missing"
            )
        credential, secret = self._secrets.get(id, (None, NO_SECRET))
        fits = secret.is_of(digest_of(token))
        if not fits or credential is None or self._is_over(secret.time_expires):
            raise NotAuthenticated("the token is not valid here, or not any more")
        return self._valid(credential)

    def _valid(self, credential: Credential) -> Caller:
        if self._is_over(credential.expires):
            raise NotAuthenticated(f"credential {credential.name!r} has expired")
        return credential.caller

    def _is_over(self, expires: datetime | None) -> bool:
        return expires is not None and is_over(expires, datetime.fromtimestamp(self._clock(), UTC))

    def _refresh(self) -> None:
        same = self._top is not None and self._top == _time_of(self.directory)
        if same and time.monotonic() < self._look_at:
            return
        try:
            faults = self._look()
        except StackedError as error:  # a directory that cannot be read authenticates no one
            self._top, faults = None, [str(error)]
            self._use({})
        for fault in faults:
            logger.warning("a key is left out: %s", fault)

    def _look(self) -> list[str]:
        """Read the files that have changed; a message for each of them that is no credential."""
        began, top = time.monotonic(), _time_of(self.directory)
        self._top = top if abs(time.time_ns() - top) > _STEP_NS else None
        before, now = self._scan, scan(self.directory, self._scan)
        changed = {path: each for path, each in now.items() if each is not before.get(path)}
        if changed or len(now) != len(before):
            self._use(now)
        took = time.monotonic() - began
        self._look_at = began + max(LOOK_SECONDS, 100 * took)  # with 10,000 files: 1 % of the time
        return sorted_out(changed)[1]

    def _use(self, found: Scan) -> None:
        self._scan = found
        credentials = sorted_out(found)[0]
        signing = {str(one.public.principal): one for one in credentials if one.public}
        self._signing = signing | self._given
        self._secrets = {secret.id: (one, secret) for one in credentials for secret in one.secrets}


def _time_of(directory: Path) -> int:
    """When a directory last changed, in nanoseconds; 0 if there is none."""
    try:
        return os.stat(directory).st_mtime_ns
    except OSError:
        return 0


def _configured(key_id: str, text: str) -> tuple[str, Credential]:
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
    caller = Rights(admin=True).caller(principal.user, principal.user)
    return str(principal), Credential(caller.name, caller, public=PublicKey(principal, key))
