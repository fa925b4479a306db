"""Request signatures as OCI's SDKs make them: who signed a request, and what body was meant.

Pure: no clock, no disk, no ASGI. It must not know which requests have to be signed.

    Authorization: Signature algorithm="rsa-sha256",headers="date (request-target) host",
                   keyId="<tenancy>/<user>/<fingerprint>",signature="<base64>",version="1"

What is signed is one line for each of the names, `name: value`, joined by line feeds. The list may
have capitals (OCI's SDK for TypeScript writes `Content-Type Content-Length`); the lines have none.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from stacked.errors import NotAuthenticated
from stacked.keys import Principal

Headers = Sequence[tuple[bytes, bytes]]
FindKey = Callable[[str], RSAPublicKey | None]

TARGET = "(request-target)"
BODY_DIGEST = "x-content-sha256"

_SCHEME = "Signature "
_PAIR = re.compile(r'([A-Za-z]+)="([^"]*)"')
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_WANTED = ("algorithm", "headers", "keyId", "signature", "version")
# OCI's SDKs sign six headers at most. Far more is not parsed for a caller who is not known yet.
_MOST_CHARACTERS = 8192
_MOST_NAMES = 32


@dataclass(frozen=True, slots=True)
class Verified:
    """Whose signature it is. `digest`: SHA-256 that the body must have; None: it is not covered."""

    principal: Principal
    digest: bytes | None


@dataclass(frozen=True, slots=True)
class _Parameters:
    names: tuple[str, ...]
    key_id: str
    signature: bytes


def verify(
    method: str,
    target: bytes,
    headers: Headers,
    find: FindKey,
    *,
    now: float,
    skew_seconds: float,
    covers_body: bool,
) -> Verified:
    """Check a request's signature. Raises NotAuthenticated.

    `target` is the path and query of the request line; `now` is in seconds since the
    epoch. `covers_body`: whether the body's digest must be signed.
    """
    values = _values(headers)
    given = _parse(_only(values, "authorization"))
    principal = _principal(given.key_id)
    key = find(given.key_id)
    if key is None:
        raise NotAuthenticated(f"no key is registered as {given.key_id}")
    _check_names(given.names, covers_body)
    signed = _signed_text(method, target, values, given.names)
    try:
        key.verify(given.signature, signed, PKCS1v15(), SHA256())
    except InvalidSignature as error:
        raise NotAuthenticated(
            "the signature does not fit the request: a signed header, the path, the query or the "
            "key is another one"
        ) from error
    for name in ("date", "x-date"):
        if name in given.names:
            _check_date(_only(values, name), now, skew_seconds)
    digest = _digest(_only(values, BODY_DIGEST)) if BODY_DIGEST in given.names else None
    return Verified(principal, digest)


def check_digest(given: bytes, wanted: bytes | None) -> None:
    """Compare a body's SHA-256 with the one that was signed. Raises NotAuthenticated."""
    if wanted is not None and not hmac.compare_digest(given, wanted):
        raise NotAuthenticated(f"the body is not the one whose {BODY_DIGEST} was signed")


def _values(headers: Headers) -> dict[str, list[bytes]]:
    values: dict[str, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name.decode("latin-1").lower(), []).append(value.strip(b" \t"))
    return values


def _only(values: Mapping[str, list[bytes]], name: str) -> bytes:
    found = values.get(name, [])
    if not found:
        if name == "authorization":
            raise NotAuthenticated(
                "the request has no credential; sign it as OCI's SDK does, or send a token where "
                "those are taken (docs/security.md)"
            )
        raise NotAuthenticated(f"header {name} is signed and not there")
    if len(found) > 1:
        raise NotAuthenticated(f"header {name} appears {len(found)} times")
    return found[0]


def _parse(header: bytes) -> _Parameters:
    if len(header) > _MOST_CHARACTERS:
        raise NotAuthenticated(f"authorization has more than {_MOST_CHARACTERS} characters")
    try:
        text = header.decode("ascii")
    except UnicodeDecodeError as error:
        raise NotAuthenticated("authorization is not ASCII") from error
    if not text.startswith(_SCHEME):
        raise NotAuthenticated('authorization is not of the scheme "Signature"')
    pairs: dict[str, str] = {}
    for part in re.split(r",[ ]?", text.removeprefix(_SCHEME)):
        match = _PAIR.fullmatch(part)
        if match is None:
            raise NotAuthenticated('authorization is not a list of name="value"')
        if match[1] in pairs or match[1] not in _WANTED:
            raise NotAuthenticated(f"authorization: {match[1][:40]} is unknown, or appears twice")
        pairs[match[1]] = match[2]
    missing = [name for name in _WANTED if name not in pairs]
    if missing:
        raise NotAuthenticated(f"authorization: {missing[0]} is missing")
    if pairs["version"] != "1":
        raise NotAuthenticated("authorization: version must be 1")
    if pairs["algorithm"] != "rsa-sha256":
        raise NotAuthenticated("authorization: algorithm must be rsa-sha256")
    names = tuple(pairs["headers"].lower().split(" "))
    return _Parameters(names, pairs["keyId"], _base64(pairs["signature"]))


def _base64(text: str) -> bytes:
    """Bytes from their canonical text only: otherwise a signature would have several forms."""
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NotAuthenticated("authorization: signature is not base64") from error
    if base64.b64encode(found).decode() != text:
        raise NotAuthenticated("authorization: signature is not base64")
    return found


def _principal(key_id: str) -> Principal:
    if key_id.startswith("ST$"):
        raise NotAuthenticated(
            "security tokens and resource principals are not taken here; use an API signing key"
        )
    try:
        return Principal.parse(key_id)
    except ValueError as error:
        raise NotAuthenticated(f"authorization: keyId: {error}") from error


def _check_names(names: Sequence[str], covers_body: bool) -> None:
    if len(names) > _MOST_NAMES or len(set(names)) < len(names):
        raise NotAuthenticated("authorization: headers has a name twice, or too many")
    if not all(name == TARGET or _NAME.fullmatch(name) for name in names):
        raise NotAuthenticated("authorization: headers is not a list of names")
    wanted = [TARGET, "host"]
    if covers_body:
        wanted += ["content-length", "content-type", BODY_DIGEST]
    missing = [name for name in wanted if name not in names]
    if "date" not in names and "x-date" not in names:
        missing.insert(0, "date")
    if missing:
        raise NotAuthenticated(f"the signature leaves out {', '.join(missing)}")


def _signed_text(
    method: str, target: bytes, values: Mapping[str, list[bytes]], names: Sequence[str]
) -> bytes:
    lines = []
    for name in names:
        if name == TARGET:
            lines.append(f"{name}: {method.lower()} ".encode() + target)
        else:
            lines.append(f"{name}: ".encode() + _only(values, name))
    return b"\n".join(lines)


def _check_date(value: bytes, now: float, skew_seconds: float) -> None:
    parts = parsedate_tz(value.decode("latin-1"))
    try:
        then = None if parts is None else mktime_tz(parts)
    except (ValueError, OverflowError):
        then = None
    if then is None:
        raise NotAuthenticated("date is not a date such as Thu, 01 Jan 2026 00:00:00 GMT")
    off = then - now
    if abs(off) > skew_seconds:
        side = "ahead of" if off > 0 else "behind"
        raise NotAuthenticated(
            f"date is {abs(off):.0f} s {side} the server's clock; {skew_seconds:.0f} s are allowed"
        )


def _digest(value: bytes) -> bytes:
    try:
        found = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if len(found) != 32 or base64.b64encode(found) != value:
        raise NotAuthenticated(f"{BODY_DIGEST} is not the base64 of a SHA-256")
    return found
