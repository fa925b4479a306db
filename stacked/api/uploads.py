"""Uploads: raw bytes from a request to a file, whatever their content type, never held in memory.

It must not know what the bytes are or whose they will be.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from urllib.parse import unquote

from fastapi import Request
from starlette.requests import ClientDisconnect

from stacked.api.bodies import ClientGone
from stacked.errors import BodyInvalid, BodyTooLarge, LengthRequired
from stacked.service import Service
from stacked.store import Incoming

RAW = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
"""For a route's `openapi_extra`."""

_PIECE = 1 << 20  # collected before a thread writes it: a chunk of HTTP is a few KiB
_PLAIN_NAME = re.compile(r'filename\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;]+))', re.IGNORECASE)
_CODED_NAME = re.compile(r"filename\*\s*=\s*utf-8''([^\s;]+)", re.IGNORECASE)


@contextlib.asynccontextmanager
async def received(request: Request, service: Service, setting: str) -> AsyncIterator[Incoming]:
    """The whole body as a file, which is removed after the block unless it was stored in it.

    `setting` is the limit, a name in `server`. Raises LengthRequired, BodyTooLarge,
    BodyInvalid, StoreUnusable.
    """
    length = _length(request, getattr(service.config.server, setting), setting)
    with await asyncio.to_thread(service.catalogue.files.receive, length) as incoming:
        piece = bytearray()
        try:
            async for chunk in request.stream():
                piece += chunk
                if incoming.bytes + len(piece) > length:
                    raise BodyInvalid(f"the body is longer than its content-length of {length}")
                if len(piece) >= _PIECE:
                    await asyncio.to_thread(incoming.write, bytes(piece))
                    piece.clear()
        except ClientDisconnect as error:
            raise ClientGone from error
        await asyncio.to_thread(incoming.write, bytes(piece))
        if incoming.bytes != length:
            raise BodyInvalid(f"the body has {incoming.bytes} bytes; {length} were announced")
        await asyncio.to_thread(incoming.finish)
        yield incoming


def file_name(request: Request) -> str:
    """The client's name of the file: its last part, empty if it has none."""
    header = request.headers.get("content-disposition", "")
    coded = _CODED_NAME.search(header)
    if coded:
        name = unquote(coded[1])
    else:
        plain = _PLAIN_NAME.search(header)
        name = re.sub(r"\\(.)", r"\1", plain[1] or plain[2] or "") if plain else ""
    name = re.split(r"[/\\]", name)[-1]
    return "".join(c for c in name if c.isprintable())[:255]


def _length(request: Request, limit: int, setting: str) -> int:
    given = request.headers.get("content-length")
    if given is None:
        raise LengthRequired("an upload must have a content-length; send the file, not a stream")
    if not given.isascii() or not given.isdigit():
        raise BodyInvalid(f"content-length is no number: {given[:40]!r}")
    length = int(given) if len(given) < 20 else limit + 1
    if length > limit:
        raise BodyTooLarge(
            f"the artifact has more than {limit} bytes; send less, or raise server.{setting}",
            setting,
        )
    if length == 0:
        raise BodyInvalid("the artifact is empty; send the file's bytes as the body")
    return length
