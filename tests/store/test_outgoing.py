"""Adapters that leave this machine: what they are called, what is sent of them, and how little."""

from __future__ import annotations

import shutil
import tempfile
import tracemalloc
from pathlib import Path

import pytest

from stacked.errors import AdapterError, FileMissing, SourceNotFound, StoreUnusable, ValueNotFinite
from stacked.store import AdapterStore, BaseModules, outgoing
from stacked.store.files import WANTED
from tests.store.small import lora_weights, write_adapter

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
