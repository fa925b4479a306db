"""Who may come in: every request is signed by a known key, except those that ask for health.

Bodies are compared with what was signed before anything acts on them; those of uploads while they
pass.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path

from starlette.types import Message, Receive, Scope

from stacked.api.bodies import read_body
from stacked.api.keyring import KeyRing
from stacked.api.signatures import Headers, check_digest, verify
from stacked.callers import NOBODY, called_by
from stacked.config import ControlConfig, ServerConfig, is_loopback
from stacked.errors import ConfigInvalid, NotAllowed
from stacked.keys import keys_dir
from stacked.serving.bodies import replay
from stacked.serving.targets import is_open, model_target

# A platform's health probes, which reveal nothing about models.
_HEALTH = frozenset({"/health", "/ping"})

# SDKs leave the body of these out of the signature, so that they need not read it twice.
_UPLOADS = re.compile(
    r"/20190101/(models/[^/]+(/(custom|defined)Metadata/[^/]+)?|modelGroups/[^/]+)/artifact"
    r"|/stacked/adapters/[^/]+"
)


class Gate:
    """Checks requests against a ring of keys. `clock` gives seconds since the epoch."""

    def __init__(
        self,
        keys: KeyRing,
        *,
        skew_seconds: float,
        max_body_bytes: int,
        health_path: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._skew = skew_seconds
        self._limit = max_body_bytes
        self._open = _HEALTH | ({health_path} if health_path else set())
        self._clock = clock

    def __str__(self) -> str:
        """The line for the start's output."""
        count = len(self._keys)
        where = f" in {self._keys.directory}" if self._keys.directory else ""
        more = "" if count else "; `stacked keys create NAME --oci` makes one"
        return f"OCI signatures, {count} {'key' if count == 1 else 'keys'}{where}{more}"

    async def authenticate(
        self, scope: Scope, receive: Receive, *, deployment: str | None = None
    ) -> Receive:
        """The `receive` to go on with; who has signed is left in the scope.

        `deployment`: the one that the path is below. Unsigned requests do not learn which exist.

        `scope["path"]` has no doubled slash in front any more; what was signed is looked up in
        `raw_path` and `query_string`, which must be as they came. Raises NotAuthenticated,
        NotAllowed for a key that may not do this, and BodyTooLarge for what is no upload.
        """
        method, path = scope["method"], scope["path"]
        if deployment is None and path in self._open and method in ("GET", "HEAD"):
            scope.update(called_by(NOBODY))
            return receive
        upload = is_upload(method, path)
        headers: Headers = scope["headers"]
        seen = verify(
            method,
            _target(scope),
            headers,
            self._keys.find,
            now=self._clock(),
            skew_seconds=self._skew,
            covers_body=not upload and _has_body(method, headers),
        )
        caller = self._keys.caller(seen.principal)
        if not caller.admin and not _asks_a_model(method, path):
            raise NotAllowed(f"this key is for inference alone, and {method} {path[:200]} is not")
        scope.update(called_by(caller))
        if seen.digest is None:
            return receive
        if upload:
            return _checked(receive, seen.digest)
        body = await read_body(receive, self._limit, _declared(headers))
        check_digest(hashlib.sha256(body).digest(), seen.digest)
        return replay(body, receive)


def open_gate(config: ControlConfig, data_dir: Path) -> Gate | None:
    """The gate of a config; None if requests need not be signed.

    Raises ConfigInvalid for invalid keys.
    """
    oci = config.server.auth.oci
    if oci is None:
        return None
    directory = Path(oci.directory) if oci.directory else keys_dir(data_dir)
    return Gate(
        KeyRing(oci.keys, directory),
        skew_seconds=oci.clock_skew_seconds,
        max_body_bytes=config.server.max_body_bytes,
        health_path=config.server.health_path,
    )


def check_reach(server: ServerConfig) -> None:
    """Refuse to be open to a network by oversight. Raises ConfigInvalid."""
    auth = server.auth
    if auth.oci is None and not auth.none and not is_loopback(server.host):
        raise ConfigInvalid(
            f"server.host: {server.host!r} is not a loopback address, and requests need not be "
            "signed: anyone who reaches it could use this server. Set server.auth.oci (then "
            "`stacked keys create NAME --oci`), serve on 127.0.0.1, or allow it with "
            "server.auth.none: true or --insecure-no-auth"
        )


def is_upload(method: str, path: str) -> bool:
    """Whether the body is an artifact or an adapter: streamed, and not covered by a signature."""
    return method in ("POST", "PUT") and _UPLOADS.fullmatch(path) is not None


def _asks_a_model(method: str, path: str) -> bool:
    """Whether a request runs a model, or reads what clients of models read."""
    return model_target(method, path) is not None or is_open(method, path)


def _target(scope: Scope) -> bytes:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope.get("query_string", b"")
    return raw + b"?" + query if query else raw


def _has_body(method: str, headers: Headers) -> bool:
    """Whether a signature covers the body. For those methods also an empty one."""
    if method in ("POST", "PUT", "PATCH"):
        return True
    coded = any(name.lower() == b"transfer-encoding" for name, _ in headers)
    return coded or _declared(headers) not in (None, "0")


def _declared(headers: Headers) -> str | None:
    found = (value for name, value in headers if name.lower() == b"content-length")
    return next((value.decode("latin-1").strip() for value in found), None)


def _checked(receive: Receive, wanted: bytes) -> Receive:
    """A `receive` that hashes the body, and passes on the last part only if all is as signed."""
    seen = hashlib.sha256()

    async def receive_checked() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            seen.update(message.get("body", b""))
            if not message.get("more_body", False):
                check_digest(seen.digest(), wanted)
        return message

    return receive_checked
