"""What an uploaded zip is taken for, and how a base in one is kept."""

from __future__ import annotations

import io
import shutil
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from stacked.errors import (
    AdapterAbsent,
    AdapterError,
    AdapterTooLarge,
    ArchiveInvalid,
    FileMissing,
    PathUnsafe,
    SourceNotFound,
    StoreUnusable,
    ValueNotFinite,
)
from stacked.store import AdapterStore, BaseModules, BaseStore, Kind, Limits, kind_of, outgoing
from stacked.store.files import WANTED
from tests.store.small import lora_weights, write_adapter, write_base


def zip_of(place: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return place


def zipped(directory: Path, prefix: str = "") -> Path:
    files = {prefix + file.name: file.read_bytes() for file in directory.iterdir()}
    return zip_of(directory.with_suffix(".zip"), **files)


@pytest.mark.parametrize("prefix", ["", "top/"])
def test_a_zip_is_told_by_its_files(tmp_path: Path, prefix: str) -> None:
    adapter = zipped(write_adapter(tmp_path / "adapter"), prefix)
    base = zipped(write_base(tmp_path / "base"), prefix)
    assert kind_of(adapter, Limits(), "it") is Kind.ADAPTER
    assert kind_of(base, Limits(), "it") is Kind.BASE


def test_an_adapter_that_stands_beside_a_base_config_is_an_adapter(tmp_path: Path) -> None:
    place = write_adapter(tmp_path / "adapter")
    (place / "config.json").write_text("{}")
    assert kind_of(zipped(place), Limits(), "it") is Kind.ADAPTER


@pytest.mark.parametrize(
    "files",
    [
        {"score.py": b""},
        {"config.json": b"{}"},
        {"a.safetensors": b""},
        {"config.json": b"{}", "deeper/a.safetensors": b""},
        {"a/b/config.json": b"{}", "a/b/x.safetensors": b""},
        {
            "a/config.json": b"",
            "a/x.safetensors": b"",
            "b/config.json": b"",
            "b/x.safetensors": b"",
        },
        {},
    ],
)
def test_what_is_neither_may_be_a_model(tmp_path: Path, files: dict[str, bytes]) -> None:
    assert kind_of(zip_of(tmp_path / "a.zip", **files), Limits(), "it") is Kind.MODEL


def test_a_base_is_kept_once_whole_and_readable(tmp_path: Path) -> None:
    store = BaseStore(tmp_path / "store")
    source = write_base(tmp_path / "base")
    (source / "tokenizer.json").write_text("{}")
    (source / "merges.txt").write_text("a b")
    (source / "modeling.py").write_text("raise SystemExit")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "weights.pt").write_bytes(b"pickle")
    digest, size = store.add(zipped(source, "top/"), "it")
    path = store.path(digest)
    assert BaseModules.read(path).modules == BaseModules.read(source).modules
    assert size == (source / "model.safetensors").stat().st_size
    names = {file.name for file in path.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "merges.txt"}
    assert store.add(zipped(source), "it")[0] == digest
    (source / "merges.txt").write_text("a c")
    assert store.add(zipped(source), "it")[0] != digest, "every kept byte is in the digest"
    assert all(file.stat().st_mode & 0o222 == 0 for file in path.iterdir()), "read-only"


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [(b"{", b"x", "not valid JSON"), (b"{}", b"nothing", "a.safetensors"), (b"[]", b"", "object")],
)
def test_a_base_that_cannot_be_read_is_refused_and_nothing_is_left(
    tmp_path: Path, config: bytes, weights: bytes, said: str
) -> None:
    store = BaseStore(tmp_path / "store")
    files = {"config.json": config, "a.safetensors": weights}
    with pytest.raises(ArchiveInvalid, match=said) as caught:
        store.add(zip_of(tmp_path / "a.zip", **files), "the artifact")
    assert str(tmp_path) not in str(caught.value)
    assert list((tmp_path / "store" / "bases").iterdir()) == []
    assert list((tmp_path / "store" / "unpacking").iterdir()) == []


def test_unsafe_names_and_bombs_are_refused(tmp_path: Path) -> None:
    store = BaseStore(tmp_path / "store", Limits(max_bytes=10_000, max_members=5, max_ratio=20))
    good = {"config.json": b"{}", "a.safetensors": b""}
    with pytest.raises(PathUnsafe):
        store.add(zip_of(tmp_path / "a.zip", **good, **{"../x": b""}), "it")
    with pytest.raises(AdapterTooLarge, match="5 members"):
        store.add(zip_of(tmp_path / "b.zip", **good, **{f"{n}": b"" for n in range(4)}), "it")
    with pytest.raises(AdapterTooLarge):
        store.add(zip_of(tmp_path / "c.zip", **good, **{"b.safetensors": bytes(10_001)}), "it")
    small = Limits(max_bytes=10**9, max_ratio=20, ratio_floor=1000)
    bomb = zip_of(tmp_path / "d.zip", **good, **{"b.safetensors": bytes(500_000)})
    with pytest.raises(AdapterTooLarge, match="zip bomb"):
        BaseStore(tmp_path / "other", small).add(bomb, "it")


def test_a_size_that_lies_is_not_believed(tmp_path: Path) -> None:
    """The member says that it is small; what is unpacked is no more than it says."""
    place = zip_of(tmp_path / "a.zip", **{"config.json": b"{}", "a.safetensors": bytes(5000)})
    raw = bytearray(place.read_bytes())
    for at in range(len(raw)):  # the uncompressed size, in both headers of the second member
        if raw[at : at + 4] == (5000).to_bytes(4, "little"):
            raw[at : at + 4] = (10).to_bytes(4, "little")
    place.write_bytes(raw)
    with pytest.raises(ArchiveInvalid):
        BaseStore(tmp_path / "store").add(place, "it")


def test_a_base_that_is_not_there_is_told(tmp_path: Path) -> None:
    store = BaseStore(tmp_path / "store")
    for digest in ("sha256:" + "0" * 64, "../../etc", ""):
        with pytest.raises(AdapterAbsent):
            store.path(digest)


def test_what_a_killed_process_had_half_unpacked_is_cleared(tmp_path: Path) -> None:
    BaseStore(tmp_path / "store")
    left = tmp_path / "store" / "unpacking" / "0123"
    left.mkdir()
    (left / "half").write_bytes(b"")
    BaseStore(tmp_path / "store")
    assert list((tmp_path / "store" / "unpacking").iterdir()) == []


def test_a_zip_cut_short_is_refused(tmp_path: Path) -> None:
    whole = zipped(write_base(tmp_path / "base")).read_bytes()
    for end in (0, 10, len(whole) // 2, len(whole) - 1):
        place = tmp_path / "cut.zip"
        place.write_bytes(whole[:end])
        with pytest.raises(ArchiveInvalid):
            kind_of(place, Limits(), "it")
    assert zipfile.is_zipfile(io.BytesIO(whole))


MIB = 1024 * 1024


def arrived(parts: list[bytes], directory: Path) -> Path:
    """The file that a server makes of what was sent."""
    path = directory / "arrived"
    path.write_bytes(b"".join(parts))
    return path


def test_what_is_sent_is_what_the_store_keeps_under_the_same_digest(
    store: AdapterStore, adapter: Path, base: BaseModules, tmp_path: Path
) -> None:
    (adapter / "optimizer.pt").write_bytes(b"of the trainer alone")
    with outgoing(str(adapter)) as ready:
        parts = list(ready.parts())
        assert ready.size() == sum(map(len, parts))
        assert {path.name for path in ready.directory.iterdir()} == set(WANTED)
    assert not ready.directory.exists()
    store.add_upload(arrived(parts, tmp_path), ready.digest, base=base)
    assert store.add(str(adapter), base=base).digest == ready.digest


def test_every_form_of_one_adapter_is_the_same_adapter(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(adapter)
    forms = [adapter, tmp_path / "link", adapter / ".." / adapter.name]
    forms += [shutil.make_archive(str(tmp_path / "p"), kind, adapter) for kind in ("zip", "gztar")]
    found = set()
    for form in (*map(str, forms), f"file://{adapter}"):
        with outgoing(form) as ready:
            found.add((ready.digest, b"".join(ready.parts())))
    assert len(found) == 1


def test_an_adapter_is_never_whole_in_memory(tmp_path: Path) -> None:
    weights = {name: value.repeat(4000, 0) for name, value in lora_weights().items()}
    place = write_adapter(tmp_path / "large", weights=weights)
    assert (place / "adapter_model.safetensors").stat().st_size > 12 * MIB
    tracemalloc.start()
    try:
        with outgoing(str(place)) as ready:
            assert max(map(len, ready.parts())) < 1.1 * MIB
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * MIB


def test_what_needs_no_base_is_refused_here(adapter: Path, tmp_path: Path) -> None:
    weights = lora_weights()
    next(iter(weights.values()))[0, 0] = float("nan")
    bad: dict[str, type[AdapterError]] = {
        str(write_adapter(tmp_path / "nan", weights=weights)): ValueNotFinite,
        str(tmp_path / "none"): SourceNotFound,
        str(tmp_path): FileMissing,
    }
    for source, kind in bad.items():
        with pytest.raises(kind), outgoing(source):
            raise AssertionError("it was taken")


def test_no_room_for_the_copy_is_told(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(StoreUnusable, match="TMPDIR"), outgoing(str(adapter)):
        raise AssertionError("it was taken")
