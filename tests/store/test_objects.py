"""Adapters and bases in an object store: a real HTTP server of S3's protocol, on loopback."""

from __future__ import annotations

import http.server
import io
import socket
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stacked.bases import resolve
from stacked.errors import (
    AdapterTooLarge,
    BaseNotFound,
    FileMissing,
    SourceNotFound,
    SourceRefused,
    SourceUnreachable,
    StoreUnusable,
)
from stacked.store import disk, objects
from stacked.store.limits import DEFAULT
from tests.store.small import write_base
from tests.store.test_sources import BESIDE, assert_same, fetched, refused

HASTY = replace(DEFAULT, connect_seconds=2.0, read_seconds=0.5)


def put(store: Any, directory: Path, place: str) -> str:
    for file in directory.rglob("*"):
        if file.is_file():
            store.pipe(f"bucket/{place}/{file.relative_to(directory)}", file.read_bytes())
    return f"s3://bucket/{place}"


# -- adapters -------------------------------------------------------------------------------


def test_a_folder_gives_the_files_of_an_adapter_and_no_others(
    s3: Any, adapter: Path, tmp_path: Path
) -> None:
    for name in ("README.md", "optimizer.bin", "checkpoint-1/adapter_model.safetensors"):
        (adapter / name).parent.mkdir(exist_ok=True)
        (adapter / name).write_bytes(b"x")
    address = put(s3, adapter, "team/sql")
    s3.pipe("bucket/team/sql-other/adapter_config.json", b"{}")
    for source in (address, f"{address}/", address.replace("s3:", "S3:")):
        assert_same(fetched(source, tmp_path), adapter)


def test_optional_files_come_too(s3: Any, adapter: Path, tmp_path: Path) -> None:
    names = {name.replace("*", "tool") for name in BESIDE}
    for name in names:
        (adapter / name).parent.mkdir(exist_ok=True)
        (adapter / name).write_text("{}")
    target = fetched(put(s3, adapter, "a"), tmp_path)
    assert names <= {str(file.relative_to(target)) for file in target.rglob("*")}


def test_an_archive_is_unpacked(s3: Any, adapter: Path, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(adapter, "sql")
    s3.pipe("bucket/sql.tar.gz", packed.getvalue())
    assert_same(fetched("s3://bucket/sql.tar.gz", tmp_path), adapter)


def test_large_files_come_in_parts(
    s3: Any, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_CHUNK", 1000)
    assert_same(fetched(put(s3, adapter, "a"), tmp_path), adapter)


@pytest.mark.parametrize(
    ("error", "said", "source"),
    [
        (SourceNotFound, "does not exist, or its bucket does not", "s3://bucket/nothing"),
        (SourceNotFound, "does not exist, or its bucket does not", "s3://no-such-bucket/x"),
        (SourceRefused, "not of the form s3://bucket/path", "s3://"),
        (SourceRefused, "not of the form", "s3://bucket/a/../b"),
        (SourceRefused, "not of the form", "s3://bucket/a::file:///etc/passwd"),
        (SourceUnreachable, "pip install 'stacked[gs]'", "gs://bucket/a"),
        (SourceUnreachable, "pip install 'stacked[oci]'", "oci://bucket@space/a"),
        (SourceUnreachable, "pip install 'stacked[az]'", "az://bucket/a"),
        (SourceRefused, "is not a source that works", "memory://a/b"),
        (SourceRefused, "is not a source that works", "filecache://a/b"),
    ],
)
def test_what_is_no_adapter_is_refused(
    s3: Any, tmp_path: Path, error: Any, said: str, source: str
) -> None:
    refused(error, said, source, tmp_path)


def test_a_folder_of_something_else_is_refused(s3: Any, tmp_path: Path) -> None:
    s3.pipe("bucket/other/notes.txt", b"x")
    refused(FileMissing, "adapter_config.json", "s3://bucket/other", tmp_path)


def test_what_is_too_large_is_refused_before_it_is_fetched(
    s3: Any, adapter: Path, tmp_path: Path
) -> None:
    address = put(s3, adapter, "a")
    refused(AdapterTooLarge, "at most", address, tmp_path, replace(DEFAULT, max_bytes=1000))


def test_without_credentials_it_says_so(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # no machine of a cloud is asked
    refused(SourceUnreachable, "check the credentials", "s3://bucket/a", tmp_path)


@contextmanager
def answering(status: int | None) -> Iterator[str]:
    """The address of a server that refuses everything, or with None never answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if status is None:
                ended.wait()
                return
            text = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing."""

    ended = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            ended.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [403, 500, None])
def test_a_store_that_refuses_fails_or_is_silent_is_reported(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    with answering(status) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(SourceUnreachable) as raised:
            fetched("s3://bucket/a", tmp_path, HASTY)
    assert "secret-of-the-key" not in str(raised.value)
    assert status is not None or "did not answer in" in str(raised.value)


def test_a_store_that_is_not_there_is_reported(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        refused(SourceUnreachable, "s3://bucket/a could not be used", "s3://bucket/a", tmp_path)


def test_a_download_ends_after_its_time(
    s3: Any, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = put(s3, adapter, "a")
    late = replace(DEFAULT, download_seconds=-1.0)
    refused(SourceUnreachable, "was not complete after", address, tmp_path, late)


def test_without_the_library_it_says_what_to_install(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    known = sys.modules["fsspec.registry"]
    monkeypatch.delitem(known.__dict__["_registry"], "s3", raising=False)
    refused(SourceUnreachable, "pip install 'stacked[s3]'", "s3://bucket/a", tmp_path)


# -- callers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "source", "may"),
    [
        (("s3://bucket/team",), "s3://bucket/team/a", True),
        (("s3://bucket/team/",), "s3://bucket/team", True),
        (("s3://bucket/team",), "s3://bucket/team-b/a", False),
        (("s3://bucket/team",), "s3://other/team/a", False),
        (("hf://", "http://", "https://"), "s3://bucket/team/a", False),
        ((), "s3://bucket/team/a", False),
    ],
)
def test_callers_read_what_is_listed(
    s3: Any,
    adapter: Path,
    tmp_path: Path,
    allowed: tuple[str, ...],
    source: str,
    may: bool,
) -> None:
    for place in ("team", "team/a", "team-b/a"):
        put(s3, adapter, place)
    if may:
        assert_same(fetched(source, tmp_path, remote=allowed), adapter)
    else:
        refused(SourceRefused, "list it", source, tmp_path, remote=allowed)


@pytest.mark.parametrize(
    ("allowed", "source"),
    [
        ((), "https://host/a.zip"),
        ((), "org/name"),
        (("https://host/adapters",), "https://host.evil/adapters/a.zip"),
        (("https://host/adapters",), "https://host@evil/adapters/a.zip"),
        (("hf://org",), "other/name"),
    ],
)
def test_callers_do_not_read_what_is_not_listed(
    tmp_path: Path, allowed: tuple[str, ...], source: str
) -> None:
    refused(SourceRefused, "server.remote_adapters", source, tmp_path, remote=allowed)


# -- bases ----------------------------------------------------------------------------------


def test_a_base_is_fetched_once_and_is_whole_or_absent(s3: Any, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    address = put(s3, base, "models/base")
    found = resolve(address, tmp_path / "data")
    names = {file.name for file in base.iterdir()} - {"pytorch_model.bin"}
    assert {file.name for file in found.iterdir()} == names
    assert all((found / name).read_bytes() == (base / name).read_bytes() for name in names)
    s3.rm("bucket/models", recursive=True)
    assert resolve(address, tmp_path / "data") == found
    with pytest.raises(BaseNotFound, match="does not exist"):
        resolve("s3://bucket/models/other", tmp_path / "data")
    assert [each for each in found.parent.iterdir() if each.is_dir()] == [found]


def test_a_base_without_weights_is_not_fetched(s3: Any, tmp_path: Path) -> None:
    s3.pipe("bucket/base/config.json", b"{}")
    with pytest.raises(BaseNotFound, match=r"s3://bucket/base has no \*\.safetensors"):
        resolve("s3://bucket/base", tmp_path)


def test_a_base_that_does_not_fit_the_disk_is_not_fetched(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = put(s3, write_base(tmp_path / "base"), "base")
    monkeypatch.setattr(disk, "SPARE", 2**62)
    with pytest.raises(StoreUnusable, match="no room for s3://bucket/base"):
        resolve(address, tmp_path / "data")
