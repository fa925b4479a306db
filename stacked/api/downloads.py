"""Downloads: a file of the catalogue as a response, whole or the requested part.

It must not know what the bytes are or whose they are.
"""

from __future__ import annotations

import base64
import os
import re
from email.utils import format_datetime
from typing import IO
from urllib.parse import quote

from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from stacked.errors import RangeInvalid
from stacked.registry.records import Artifact

_TOKEN = re.compile(r"[A-Za-z0-9!#$&+.^_`|~-]+")
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


class Download(FileResponse):
    """An open file, which is closed at the end; `range_` is the request's header.

    A range other than one stretch of bytes is ignored, as HTTP allows; FileResponse would refuse
    it, or answer in several parts. Raises RangeInvalid.
    """

    chunk_size = 1 << 20

    def __init__(self, artifact: Artifact, file: IO[bytes], etag: str, range_: str | None) -> None:
        self._file = file
        self._whole = not _is_one_stretch(range_ or "", artifact.bytes)
        headers = {
            "content-disposition": f"attachment; {_named(artifact)}",
            "content-md5": base64.b64encode(bytes.fromhex(artifact.md5)).decode(),
            "last-modified": format_datetime(artifact.time_created, usegmt=True),
            "etag": etag,
        }
        # By its descriptor, since what replaces an artifact removes the file's name.
        super().__init__(
            f"/dev/fd/{file.fileno()}",
            headers=headers,
            media_type="application/octet-stream",
            stat_result=os.fstat(file.fileno()),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._whole or scope["method"] != "GET":
            headers = [pair for pair in scope["headers"] if pair[0] != b"range"]
            scope = {**scope, "headers": headers}
        with self._file:
            await super().__call__(scope, receive, send)


def download(artifact: Artifact, file: IO[bytes], etag: str, range_: str | None) -> Download:
    """See `Download`; the file is closed also where the range is refused."""
    try:
        return Download(artifact, file, etag, range_)
    except RangeInvalid:
        file.close()
        raise


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


def _is_one_stretch(header: str, size: int) -> bool:
    """Whether a range header is one that is answered in part. Raises RangeInvalid."""
    match = _RANGE.fullmatch(header.replace(" ", "").lower())
    first, last = match.groups() if match else ("", "")
    if not (first or last) or (first and last and int(last) < int(first)):
        return False
    if int(first) >= size if first else int(last) == 0:
        raise RangeInvalid(f"the artifact has {size} bytes, and not those of {header!r}")
    return True
