"""Uploads that nobody came back for: they go after a day, and nothing else ever does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from stacked.core import Digest
from stacked.errors import AdapterAbsent, DigestMismatch, ModuleUnknown
from stacked.store import AdapterStore, BaseModules, outgoing
from stacked.store.unclaimed import UPLOAD_SECONDS
from tests.store.small import write_adapter, write_base


@pytest.fixture
def archive(adapter: Path, tmp_path: Path) -> Path:
    with outgoing(str(adapter)) as ready:
        path = tmp_path / "sent.zip"
        path.write_bytes(b"".join(ready.parts()))
    return path


@pytest.fixture
def digest(adapter: Path) -> Digest:
    with outgoing(str(adapter)) as ready:
        return ready.digest


def marks(store: AdapterStore) -> list[Path]:
    return list((store.root / "unclaimed").iterdir())


def age(store: AdapterStore) -> None:
    """As if every upload were older than a day."""
    then = time.time() - UPLOAD_SECONDS - 60
    for mark in marks(store):
        os.utime(mark, (then, then))


def test_an_upload_goes_after_a_day_unless_it_is_claimed(
    store: AdapterStore, base: BaseModules, archive: Path, digest: Digest
) -> None:
    store.add_upload(archive, digest, base=base)
    assert store.drop_unclaimed() == []
    assert store.holds(digest)
    age(store)
    assert store.drop_unclaimed() == [digest]
    assert (store.holds(digest), marks(store)) == (False, [])
    store.add_upload(archive, digest, base=base)
    assert store.claim(digest, base=base).digest == digest
    age(store)
    assert store.drop_unclaimed(seconds=-60) == []
    assert store.holds(digest)


def test_one_that_is_asked_about_or_sent_again_is_new_again(
    store: AdapterStore, base: BaseModules, archive: Path, digest: Digest
) -> None:
    store.add_upload(archive, digest, base=base)
    age(store)
    assert store.holds(digest)
    assert store.drop_unclaimed() == []
    age(store)
    store.add_upload(archive, digest, base=base)
    assert store.drop_unclaimed() == []


def test_what_was_added_otherwise_is_no_upload(
    store: AdapterStore, adapter: Path, base: BaseModules, archive: Path, digest: Digest
) -> None:
    """Whether it was there before or comes to be needed later, and where it was damaged."""
    store.add(str(adapter), base=base)
    store.add_upload(archive, digest, base=base)
    assert marks(store) == []
    path = store.get(digest).path
    path.chmod(0o755)
    (path / "adapter_model.safetensors").unlink()
    assert not store.holds(digest)
    store.add_upload(archive, digest, base=base)
    assert (store.holds(digest), marks(store)) == (True, [])
    store.remove(digest)
    store.add_upload(archive, digest, base=base)
    store.add(str(adapter), base=base)
    assert marks(store) == []


def test_an_upload_is_what_it_was_announced_as_or_nothing_is_kept(
    store: AdapterStore, base: BaseModules, archive: Path, digest: Digest
) -> None:
    other = Digest("sha256:" + "a" * 64)
    with pytest.raises(DigestMismatch, match="aaaaaaaaaaaa was announced"):
        store.add_upload(archive, other, base=base)
    assert not store.holds(digest)
    assert (marks(store), store.list()) == ([], [])


def test_what_does_not_fit_the_base_is_not_claimed(
    store: AdapterStore, base: BaseModules, archive: Path, digest: Digest, tmp_path: Path
) -> None:
    with pytest.raises(AdapterAbsent):
        store.claim(digest, base=base)
    store.add_upload(archive, digest, base=base)
    other = BaseModules.read(write_base(tmp_path / "other", prefix="x."))
    with pytest.raises(ModuleUnknown):
        store.claim(digest, base=other)
    assert len(marks(store)) == 1
    with pytest.raises(ModuleUnknown):
        store.add_upload(archive, digest, base=other)


def test_what_a_crash_left_goes_too(store: AdapterStore, base: BaseModules, tmp_path: Path) -> None:
    (store.root / "unclaimed" / ("b" * 64)).touch()
    (store.root / "staging" / "left").mkdir()
    kept = store.add(str(write_adapter(tmp_path / "k", seed=9)), base=base)
    age(store)
    assert len(store.drop_unclaimed()) == 1
    assert list((store.root / "staging").iterdir()) == []
    assert (marks(store), [each.digest for each in store.list()]) == ([], [kept.digest])
