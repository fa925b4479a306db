"""A download reads one file to its end, whatever becomes of its name, and closes it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest

from stacked.api.downloads import Download, download
from stacked.errors import RangeInvalid
from stacked.registry.records import Artifact

CONTENT = b"0123456789" * 300_000


def artifact(content: bytes = CONTENT) -> Artifact:
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return Artifact(owner_id="m", sha256="0" * 64, md5=md5, bytes=len(content))


async def answer(app: Download, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        return await http.get("/", headers=headers)


@pytest.mark.parametrize("range_", [None, "bytes=1500000-"])
async def test_what_replaces_the_file_is_not_sent(tmp_path: Path, range_: str | None) -> None:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    file = path.open("rb")
    app = download(artifact(), file, "etag", range_)
    path.unlink()
    path.write_bytes(b"another")
    got = await answer(app, **({"range": range_} if range_ else {}))
    assert got.content == (CONTENT[1_500_000:] if range_ else CONTENT)
    assert got.headers["content-length"] == str(len(got.content))
    assert file.closed


async def test_a_file_is_closed_also_where_its_range_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    file = path.open("rb")
    with pytest.raises(RangeInvalid, match="3000000 bytes"):
        download(artifact(), file, "etag", "bytes=3000000-")
    assert file.closed


async def test_a_range_that_is_none_is_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(b"0123456789")
    for range_ in ("bytes=0-1,4-5", "bytes=5-2", "bytes=1_0-", "lines=0-1", f"bytes={'9' * 30}-"):
        app = download(artifact(b"0123456789"), path.open("rb"), "etag", range_)
        got = await answer(app, range=range_)
        assert (got.status_code, got.content) == (200, b"0123456789"), range_
