"""Bearer tokens: what one looks like, how one is made, and what a server keeps of it.

    stk_<id: 16 hex digits>_<secret: 64 hex digits><checksum: 8 hex digits>

The id is public: it finds the credential. The checksum is the CRC-32 of all that precedes it, so
that a scanner of source code can discard a false match without a server.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints
from pydantic.alias_generators import to_camel

PATTERN = re.compile(r"stk_([0-9a-f]{16})_[0-9a-f]{64}([0-9a-f]{8})")


class Secret(BaseModel):
    """One token, as it is stored.

    SHA-256 without salt or stretching: those protect what people choose. This has 256 bits of
    randomness, which no list contains and nobody can try, and it is hashed for each request.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True
    )

    id: Annotated[str, StringConstraints(pattern="^[0-9a-f]{16}$")]
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    time_expires: AwareDatetime | None = None
    """When it stops working, after its successor was made."""

    def is_of(self, digest: str) -> bool:
        """Whether a token has this digest; takes as long for every wrong one."""
        return hmac.compare_digest(self.sha256, digest)

    def until(self, when: datetime) -> Secret:
        return self.model_copy(update={"time_expires": when})


NO_SECRET = Secret(id="0" * 16, sha256="0" * 64)
"""What a token with an unknown id is compared with, so that it takes as long as a known one."""


def is_over(expires: datetime | None, now: datetime) -> bool:
    """Whether something that may expire has."""
    return expires is not None and expires <= now


def make() -> tuple[str, Secret]:
    """A new token, and what is stored of it."""
    id = secrets.token_hex(8)
    head = f"stk_{id}_{secrets.token_hex(32)}"
    token = head + _checksum(head)
    return token, Secret(id=id, sha256=digest_of(token))


def id_of(token: str) -> str | None:
    """The public id of a token; None where it is none, or mistyped."""
    match = PATTERN.fullmatch(token)
    if match is None or _checksum(token[: match.start(2)]) != match[2]:
        return None
    return match[1]


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
