"""Downloads: a file of the catalogue as an answer, whole or the part that was asked for.

It must not know what the bytes are or whose they are.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from email.utils import format_datetime
from typing import IO
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from stacked.errors import RangeInvalid
from stacked.registry.records import Artifact

_PIECE = 1 << 20
_TOKEN = re.compile(r"[A-Za-z0-9!#$&+.^_`|~-]+")
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


def head(artifact: Artifact, etag: str) -> Response:
    """The headers of a download alone."""
    return Response(headers=_headers(artifact, etag, artifact.bytes))


def download(request: Request, artifact: Artifact, file: IO[bytes], etag: str) -> Response:
    """The bytes, or those that the `range` header asks for; `file` is closed at the end.

    A range of another form than one stretch of bytes is not kept: all is sent, as HTTP has it.
    Raises RangeInvalid.
    """
    try:
        part = _part(request.headers.get("range"), artifact.bytes)
    except RangeInvalid:
        file.close()
        raise
    first, count = part or (0, artifact.bytes)
    headers = _headers(artifact, etag, count)
    if part is not None:
        headers["content-range"] = f"bytes {first}-{first + count - 1}/{artifact.bytes}"
    body = _pieces(file, first, count)
    return StreamingResponse(body, 200 if part is None else 206, headers)


def _headers(artifact: Artifact, etag: str, length: int) -> dict[str, str]:
    return {
        "content-type": "application/octet-stream",
        "content-length": str(length),
        "content-disposition": f"attachment; {_named(artifact)}",
        "content-md5": base64.b64encode(bytes.fromhex(artifact.md5)).decode(),
        "last-modified": format_datetime(artifact.time_created, usegmt=True),
        "accept-ranges": "bytes",
        "etag": etag,
    }


def _named(artifact: Artifact) -> str:
    """A name without quotes where it can be: ADS takes the rest of the header for its ending.

    What a model or group holds has one name, as the service gives it, whoever uploaded it as what.
    """
    name = artifact.name if artifact.part else "artifact.zip"
    if _TOKEN.fullmatch(name):
        return f"filename={name}"
    plain = re.sub(r'[^ -~]|["\\]', "_", name)
    coded = "" if plain == name else f"; filename*=UTF-8''{quote(name)}"
    return f'filename="{plain}"{coded}'


def _part(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and count; None for all of it."""
    match = _RANGE.fullmatch(header.replace(" ", "").lower()) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if match[1]:
        first, last = int(match[1]), min(int(match[2] or size), size - 1)
        if match[2] and int(match[2]) < first:
            return None
    else:
        first, last = max(size - int(match[2]), 0), size - 1
    if first >= size or last < first:
        raise RangeInvalid(f"the artifact has {size} bytes, and not those of {header!r}")
    return first, last - first + 1


async def _pieces(file: IO[bytes], first: int, count: int) -> AsyncIterator[bytes]:
    with file:
        await asyncio.to_thread(file.seek, first)
        while count > 0:
            piece = await asyncio.to_thread(file.read, min(_PIECE, count))
            if not piece:
                return  # the server then cuts the connection: what was announced is not there
            count -= len(piece)
            yield piece
