"""Files as they were uploaded: kept whole under the sha256 of their bytes, or not at all."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from stacked.errors import StoreDamaged, StoreUnusable
from stacked.store import ArtifactFiles, pack
from tests.store.small import write_adapter


@pytest.fixture
def files(tmp_path: Path) -> ArtifactFiles:
    return ArtifactFiles(tmp_path / "artifacts", ())


def kept(files: ArtifactFiles, *pieces: bytes) -> str:
    with files.receive() as incoming:
        for piece in pieces:
            incoming.write(piece)
        incoming.finish()
        files.keep(incoming)
        return incoming.sha256


def names(files: ArtifactFiles) -> set[str]:
    return {path.name for path in files.root.iterdir()}


def test_a_file_is_kept_under_its_digest_and_read_again(files: ArtifactFiles) -> None:
    with files.receive(7) as incoming:
        incoming.write(b"abc")
        incoming.write(b"defg")
        incoming.finish()
        files.keep(incoming)
    assert incoming.sha256 == hashlib.sha256(b"abcdefg").hexdigest()
    assert incoming.md5 == hashlib.md5(b"abcdefg", usedforsecurity=False).hexdigest()
    assert incoming.bytes == 7
    with files.open(incoming.sha256) as file:
        assert file.read() == b"abcdefg"
    assert kept(files, b"abcdefg") == incoming.sha256
    assert names(files) == {"incoming", incoming.sha256}


def test_what_was_not_kept_is_gone(files: ArtifactFiles) -> None:
    with files.receive() as incoming:
        incoming.write(b"abc")
    assert not incoming.path.exists()

    def interrupted() -> None:
        with files.receive() as incoming:
            incoming.write(b"abc")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((files.root / "incoming").iterdir()) == []


def test_a_reader_reads_on_when_the_file_is_dropped(files: ArtifactFiles) -> None:
    sha256 = kept(files, b"abc")
    with files.open(sha256) as file:
        files.drop(sha256)
        assert file.read() == b"abc"
    with pytest.raises(StoreDamaged, match="upload it again"):
        files.open(sha256)
    files.drop(sha256)


def test_a_start_removes_what_nobody_needs(files: ArtifactFiles) -> None:
    needed, orphan = kept(files, b"needed"), kept(files, b"orphan")
    (files.root / "incoming" / "half").write_bytes(b"half")
    ArtifactFiles(files.root, {needed})
    assert names(files) == {"incoming", needed}
    assert orphan not in names(files)
    assert list((files.root / "incoming").iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_comes(
    files: ArtifactFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(StoreUnusable, match="no room"):
        files.receive(10**9)
    kept(files, b"abc")


def test_a_directory_is_packed_the_same_each_time(files: ArtifactFiles, tmp_path: Path) -> None:
    place = write_adapter(tmp_path / "adapter")
    digests = []
    for _ in range(2):
        with files.receive() as incoming:
            pack(place, incoming)
            incoming.finish()
            files.keep(incoming)
            digests.append(incoming.sha256)
        for file in place.iterdir():
            file.touch()
    assert digests[0] == digests[1]
    with files.open(digests[0]) as file, zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["adapter_config.json", "adapter_model.safetensors"]
        for name in archive.namelist():
            assert archive.read(name) == (place / name).read_bytes()
