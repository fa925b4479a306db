"""Archives: the good ones unpack to the same adapter, the hostile ones are refused by kind."""

from __future__ import annotations

import io
import lzma
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stacked.errors import (
    AdapterError,
    AdapterTooLarge,
    ArchiveInvalid,
    FileMissing,
    PathUnsafe,
    PickleRefused,
)
from stacked.store.archives import unpack
from stacked.store.limits import MIB, Limits

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
GOOD = {CONFIG: b"{}", WEIGHTS: b"weights"}
PACKINGS = ["zip", "stored", "tar", "tar.gz", "tar.bz2", "tar.xz"]


def pack(path: Path, files: dict[str, bytes], packing: str = "zip") -> Path:
    if packing in ("zip", "stored"):
        method = zipfile.ZIP_DEFLATED if packing == "zip" else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    _, _, compression = packing.partition(".")
    fast = {"preset": 0} if compression == "xz" else {}
    with tarfile.open(path, f"w:{compression}", **fast) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def unpacked(archive: Path, limits: Limits | None = None) -> dict[str, bytes]:
    target, scratch = archive.parent / "target", archive.parent / "scratch"
    target.mkdir()
    scratch.mkdir()
    unpack(archive, target, scratch, limits or Limits(), archive.name)
    files = [path for path in target.rglob("*") if path.is_file()]
    return {str(path.relative_to(target)): path.read_bytes() for path in files}


def refused(error: type[AdapterError], said: str, archive: Path, **limits: int) -> None:
    with pytest.raises(AdapterError) as caught:
        unpacked(archive, Limits(**limits))  # type: ignore[arg-type]
    assert type(caught.value) is error, str(caught.value)
    assert caught.value.code == error.__name__
    assert said in str(caught.value)
    assert list((archive.parent / "target").iterdir()) == []


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("folder", ["", "my-adapter/", "./", "./my-adapter/"])
def test_every_packing_unpacks_what_makes_an_adapter_and_nothing_else(
    tmp_path: Path, packing: str, folder: str
) -> None:
    extra = {"README.md": b"#", "vocab.json": b"{}", "run.sh": b"rm -rf /", "deep/a/b": b"x"}
    files = {f"{folder}{name}": content for name, content in {**extra, **GOOD}.items()}
    assert unpacked(pack(tmp_path / "a", files, packing)) == GOOD


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("folder", ["", "my-adapter/", "./my-adapter/"])
def test_chat_templates_and_tokens_come_along(tmp_path: Path, packing: str, folder: str) -> None:
    brought = {
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"x",
        "tokenizer.json": b"{}",
        "additional_chat_templates/tool_use.jinja": b"y",
    }
    other = {"additional_chat_templates/notes.txt": b"", "x/additional_chat_templates/a/b": b""}
    files = {f"{folder}{name}": c for name, c in {**GOOD, **brought, **other}.items()}
    assert unpacked(pack(tmp_path / "a", files, packing)) == {**GOOD, **brought}


def test_what_comes_along_is_bounded(tmp_path: Path) -> None:
    files = {**GOOD, "tokenizer_config.json": b"{" + b" " * 100 + b"}"}
    refused(AdapterTooLarge, "tokenizer_config", pack(tmp_path / "a", files), max_extra_bytes=100)


def test_directories_in_an_archive_are_fine(tmp_path: Path) -> None:
    directory = tmp_path / "source"
    directory.mkdir()
    for name, content in GOOD.items():
        (directory / name).write_bytes(content)
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.add(directory, "adapter")
    assert unpacked(tmp_path / "a.tgz") == GOOD


def test_the_top_wins_over_a_folder(tmp_path: Path) -> None:
    files = {**GOOD, f"checkpoint-9/{CONFIG}": b"old", f"checkpoint-9/{WEIGHTS}": b"old"}
    assert unpacked(pack(tmp_path / "a.zip", files)) == GOOD


# What is not an adapter


def test_two_adapters_in_one_archive_are_refused(tmp_path: Path) -> None:
    files = {f"{folder}/{name}": b"" for folder in "ab" for name in GOOD}
    refused(ArchiveInvalid, "2 adapters ('a', 'b')", pack(tmp_path / "a.zip", files))


@pytest.mark.parametrize(
    ("files", "error", "said"),
    [
        ({}, FileMissing, "no adapter_config.json and no adapter_model.safetensors"),
        ({CONFIG: b"{}"}, FileMissing, f"no {WEIGHTS}"),
        ({WEIGHTS: b""}, FileMissing, f"no {CONFIG}"),
        ({"config.json": b"", "model.safetensors": b""}, FileMissing, "full model"),
        ({CONFIG: b"{}", "adapter_model.bin": b""}, PickleRefused, "adapter_model.bin"),
        ({f"a/{CONFIG}": b"{}", "a/adapter_model.pt": b""}, PickleRefused, "adapter_model.pt"),
    ],
)
def test_an_archive_without_the_two_files_is_refused(
    tmp_path: Path, files: dict[str, bytes], error: type[AdapterError], said: str
) -> None:
    refused(error, said, pack(tmp_path / "a.zip", files))


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04 but no zip", b"\x1f\x8b but no gzip", b"\0" * 700]
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises((ArchiveInvalid, FileMissing), match=r"a\.zip"):
        unpacked(tmp_path / "a.zip")


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_archive_cut_short_is_refused(tmp_path: Path, packing: str) -> None:
    files = {CONFIG: b"{}", WEIGHTS: os.urandom(20_000)}
    archive = pack(tmp_path / "a", files, packing)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    refused(ArchiveInvalid, "cannot be read", archive)


def test_a_damaged_member_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {CONFIG: b"{}", WEIGHTS: b"w" * 99}, "stored")
    archive.write_bytes(archive.read_bytes().replace(b"w" * 99, b"v" * 99))
    refused(ArchiveInvalid, "CRC", archive)


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in (CONFIG, WEIGHTS, f"./{CONFIG}"):
            archive.writestr(name, b"{}")
    refused(ArchiveInvalid, "twice", tmp_path / "a.zip")


# What wants out


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    "name",
    ["/etc/cron.d/x", "../x", "a/../../x", "a/..", "..\\x", "C:\\x", "c:x", "//host/x"],
)
def test_a_name_that_leads_out_is_refused_even_if_unwanted(
    tmp_path: Path, packing: str, name: str
) -> None:
    refused(PathUnsafe, "leads out", pack(tmp_path / "a", {**GOOD, name: b""}, packing))


def test_a_zip_name_with_a_hidden_end_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {**GOOD, "notes!txt": b""})
    archive.write_bytes(archive.read_bytes().replace(b"notes!txt", b"notes\0txt"))
    refused(PathUnsafe, "leads out", archive)


@pytest.mark.parametrize(
    ("kind", "called"),
    [
        (tarfile.SYMTYPE, "link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "special file"),
        (tarfile.BLKTYPE, "special file"),
        (tarfile.FIFOTYPE, "special file"),
        (tarfile.GNUTYPE_SPARSE, "special file"),
    ],
)
@pytest.mark.parametrize("name", [CONFIG, "notes"])
def test_links_and_devices_in_a_tar_are_refused(
    tmp_path: Path, kind: bytes, called: str, name: str
) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(info)
    refused(PathUnsafe, f"is a {called}", tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo(CONFIG)
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    refused(PathUnsafe, "only files and directories", tmp_path / "a.zip")


# What is too much


@pytest.mark.parametrize("packing", PACKINGS)
def test_more_bytes_than_the_limit_are_refused(tmp_path: Path, packing: str) -> None:
    files = {CONFIG: b"{}", WEIGHTS: os.urandom(5000)}
    refused(AdapterTooLarge, "4.0 KiB", pack(tmp_path / "a", files, packing), max_bytes=4096)


@pytest.mark.parametrize("packing", ["zip", "tar"])
def test_a_config_over_its_own_limit_is_refused(tmp_path: Path, packing: str) -> None:
    files = {CONFIG: b" " * 101, WEIGHTS: b""}
    archive = pack(tmp_path / "a", files, packing)
    refused(AdapterTooLarge, f"'{CONFIG}'", archive, max_config_bytes=100)


@pytest.mark.parametrize("packing", PACKINGS)
def test_more_members_than_the_limit_are_refused(tmp_path: Path, packing: str) -> None:
    files = {**GOOD, **{f"{number}": b"" for number in range(20)}}
    refused(AdapterTooLarge, "20 members", pack(tmp_path / "a", files, packing), max_members=20)


@pytest.mark.parametrize("packing", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path, packing: str) -> None:
    archive = pack(tmp_path / "a", {**GOOD, "zeros": bytes(4 * MIB)}, packing)
    assert archive.stat().st_size < 8 * 1024
    refused(AdapterTooLarge, "more than", archive, ratio_floor=MIB)


def test_zeros_below_the_floor_are_no_bomb(tmp_path: Path) -> None:
    """An adapter before its first step is half zeros, and small."""
    files = {CONFIG: b"{}", WEIGHTS: bytes(4 * MIB)}
    assert unpacked(pack(tmp_path / "a.zip", files)) == files


def test_a_tar_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("n" * 10_000))
    refused(AdapterTooLarge, "extended header", tmp_path / "a.tar")


def test_a_zip_directory_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    names = {f"{number}-{'n' * 2000}": b"" for number in range(1100)}
    refused(AdapterTooLarge, "own directory", pack(tmp_path / "a.zip", names))


def test_xz_that_asks_for_too_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 * MIB}]
    plain = pack(tmp_path / "plain", GOOD, "tar").read_bytes()
    packer = lzma.LZMACompressor(lzma.FORMAT_XZ, filters=filters)
    content = packer.compress(plain) + packer.flush()
    (tmp_path / "a.tar.xz").write_bytes(content)
    refused(ArchiveInvalid, "emory", tmp_path / "a.tar.xz")


# Whatever the bytes are, the answer is the adapter or a refusal


@example(packing="stored", changes=[(6770, 1)])  # a directory that begins before the file
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(
    packing=st.sampled_from(PACKINGS),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=5),
)
def test_a_damaged_archive_gives_the_files_or_a_refusal(
    packing: str,
    changes: list[tuple[int, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    archive = pack(tmp_path_factory.mktemp("fuzz") / "a", GOOD, packing)
    content = bytearray(archive.read_bytes())
    for place, byte in changes:
        content[place % len(content)] = byte
    archive.write_bytes(content)
    outcome: dict[str, bytes] | AdapterError
    try:
        outcome = unpacked(archive)
    except AdapterError as error:
        outcome = error
    assert isinstance(outcome, AdapterError) or set(outcome) == set(GOOD)
