"""Who may come in: whoever has a token or signs with a known key, and what each of them may reach.

Health is for everyone. Bodies are compared with what was signed before anything acts on them; those
of uploads while they pass.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path

from starlette.types import Message, Receive, Scope

from stacked.api.bodies import read_body
from stacked.api.cors import LocalGate
from stacked.api.keyring import KeyRing
from stacked.api.signatures import Headers, Verified, check_digest, verify
from stacked.callers import NOBODY, Caller, called_by
from stacked.config import ControlConfig, OciAuth, ServerConfig, is_loopback
from stacked.errors import ConfigInvalid, NotAllowed, NotAuthenticated
from stacked.keys import keys_dir
from stacked.serving.bodies import replay
from stacked.serving.targets import HEALTH_PATHS, is_serving

METRICS = "/metrics"

_TOKEN_HEADERS = frozenset({b"api-key", b"x-api-key"})
_SECRETS = _TOKEN_HEADERS | {b"authorization"}

# SDKs leave the body of these out of the signature, so that they need not read it twice.
_UPLOADS = re.compile(
    r"/20190101/(models/[^/]+(/(custom|defined)Metadata/[^/]+)?|modelGroups/[^/]+)/artifact"
    r"|/stacked/adapters/[^/]+"
)


class Gate:
    """Checks requests against a ring of credentials. `clock` gives seconds since the epoch."""

    def __init__(
        self, keys: KeyRing, server: ServerConfig, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._bearer = server.auth.bearer
        self._oci = server.auth.oci
        self._limit = server.max_body_bytes
        self._closed = server.metrics not in (None, "open")
        self._open = set(HEALTH_PATHS)
        if server.health_path:
            self._open.add(server.health_path)
        if server.metrics == "open":
            self._open.add(METRICS)
        self._clock = clock
        kinds = {"Bearer": self._bearer, 'Signature version="1"': self._oci is not None}
        self.challenge = ", ".join(kind for kind, on in kinds.items() if on)
        """The value of `www-authenticate`."""

    def __str__(self) -> str:
        """The line for the start's output."""
        count = len(self._keys)
        kinds = {"bearer tokens": self._bearer, "OCI signatures": self._oci is not None}
        how = " or ".join(kind for kind, on in kinds.items() if on)
        make = "stacked keys create NAME" + ("" if self._bearer else " --oci")
        more = "" if count else f"; `{make}` makes one"
        return f"{how}, {count} {'key' if count == 1 else 'keys'} in {self._keys.directory}{more}"

    async def authenticate(
        self, scope: Scope, receive: Receive, *, deployment: str | None = None
    ) -> Receive:
        """The `receive` to go on with; who calls is left in the scope.

        `deployment`: the one that the path is below. Who is unknown does not learn which exist.

        `scope["path"]` has no doubled slash in front any more; what was signed is looked up in
        `raw_path` and `query_string`, which must be as they came. Raises NotAuthenticated,
        NotAllowed for a caller who may not do this, and BodyTooLarge for what is no upload.
        """
        method, path = scope["method"], scope["path"]
        if deployment is None and path in self._open and method in ("GET", "HEAD"):
            scope.update(called_by(NOBODY))
            return receive
        token = _token(scope["headers"]) if self._bearer else None
        if token is not None:
            caller, seen = self._keys.bearer(token), None
            scope["headers"] = _without_tokens(scope["headers"])
        elif self._oci is not None:
            seen = self._verify(self._oci, scope)
            caller = self._keys.signer(seen.principal)
        else:
            raise NotAuthenticated(
                "the request has no token; send `authorization: Bearer stk_…` (docs/security.md)"
            )
        scope.update(called_by(caller))
        self._check_may(caller, method, path)
        if seen is None or seen.digest is None:
            return receive
        if is_upload(method, path):
            return _checked(receive, seen.digest)
        body = await read_body(receive, self._limit, _declared(scope["headers"]))
        check_digest(hashlib.sha256(body).digest(), seen.digest)
        return replay(body, receive)

    def _verify(self, oci: OciAuth, scope: Scope) -> Verified:
        method, headers = scope["method"], scope["headers"]
        return verify(
            method,
            _target(scope),
            headers,
            self._keys.signing,
            now=self._clock(),
            skew_seconds=oci.clock_skew_seconds,
            covers_body=not is_upload(method, scope["path"]) and _has_body(method, headers),
        )

    def _check_may(self, caller: Caller, method: str, path: str) -> None:
        """Raises NotAllowed. What is allowed is listed; all else is for administrators."""
        if caller.admin:
            return
        of_all = caller.keys is None
        if not is_serving(method, path, of_all=of_all) or (path == METRICS and self._closed):
            raise NotAllowed(
                f"this credential is for inference alone, and {method} {path[:200]} is not"
            )


def open_gate(config: ControlConfig, data_dir: Path) -> Gate | LocalGate | None:
    """The gate of a config; None if whoever reaches the server may do everything.

    Raises ConfigInvalid for invalid keys.
    """
    auth = config.server.auth
    if not auth.required:
        return None if auth.none else LocalGate(config.server.cors)
    directory = Path(auth.directory) if auth.directory else keys_dir(data_dir)
    return Gate(KeyRing(auth.oci.keys if auth.oci else {}, directory), config.server)


def check_reach(server: ServerConfig) -> None:
    """Refuse to be open to a network by oversight. Raises ConfigInvalid."""
    auth = server.auth
    if not auth.required and not auth.none and not is_loopback(server.host):
        raise ConfigInvalid(
            f"server.host: {server.host!r} is not a loopback address, and requests need no "
            "credential: anyone who reaches it could use this server. Set server.auth.bearer: "
            "true (then `stacked keys create NAME`), serve on 127.0.0.1, or allow it with "
            "server.auth.none: true or --insecure-no-auth"
        )


def is_upload(method: str, path: str) -> bool:
    """Whether the body is an artifact or an adapter: streamed, and not covered by a signature."""
    return method in ("POST", "PUT") and _UPLOADS.fullmatch(path) is not None


def _token(headers: Headers) -> str | None:
    """The token of a request, from any of the headers in which clients send one.

    OpenAI's send `authorization: Bearer`, Azure's `api-key`, Anthropic's `x-api-key`. Raises
    NotAuthenticated if there is another credential too.
    """
    tokens, others = set(), 0
    for name, value in headers:
        if (name := name.lower()) not in _SECRETS:
            continue
        text = value.decode("latin-1").strip()
        scheme, _, rest = text.partition(" ")
        if name in _TOKEN_HEADERS:
            tokens.add(text)
        elif scheme.lower() == "bearer":
            tokens.add(rest.strip())
        else:
            others += 1
    if tokens and len(tokens) + others > 1:
        raise NotAuthenticated("the request has more than one credential; send one")
    return tokens.pop() if tokens else None


def _without_tokens(headers: Headers) -> list[tuple[bytes, bytes]]:
    """What the apps get: a secret goes no further than here."""
    return [(n, v) for n, v in headers if n.lower() not in _SECRETS]


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
