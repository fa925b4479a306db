"""What somebody was told is here and has not registered yet: uploads, and what was there before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stacked.core import Digest
from stacked.errors import AdapterAbsent, DigestMismatch, ModuleUnknown
from stacked.store import AdapterStore, BaseModules, outgoing
from tests.store.small import lora_weights, write_adapter, write_base


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


def awaited(store: AdapterStore) -> list[bool]:
    return [each.awaited for each in store.contents()]


def drop(store: AdapterStore, digest: Digest) -> bool:
    return any(store.remove(each) for each in store.contents() if each.digest == digest)


def test_an_upload_waits_until_it_is_claimed(
    store: AdapterStore, base: BaseModules, archive: Path, digest: Digest
) -> None:
    store.add_upload(archive, digest, base=base)
    assert awaited(store) == [True]
    assert store.claim(digest, base=base).digest == digest
    assert awaited(store) == [False]


def test_so_does_what_the_sender_was_told_it_need_not_send(
    store: AdapterStore, base: BaseModules, adapter: Path, archive: Path, digest: Digest
) -> None:
    store.add(str(adapter), base=base)
    assert awaited(store) == [False]
    assert store.holds(digest)
    assert awaited(store) == [True]
    store.add(str(adapter), base=base)
    assert awaited(store) == [False]
    store.add_upload(archive, digest, base=base)
    assert awaited(store) == [True]
    assert drop(store, digest)
    assert (store.holds(digest), marks(store)) == (False, [])


def test_a_damaged_one_is_replaced_by_an_upload_of_it(
    store: AdapterStore, adapter: Path, base: BaseModules, archive: Path, digest: Digest
) -> None:
    path = store.add(str(adapter), base=base).path
    path.chmod(0o755)
    (path / "adapter_model.safetensors").unlink()
    assert not store.holds(digest)
    store.add_upload(archive, digest, base=base)
    assert store.holds(digest)


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


def test_marks_of_what_is_gone_are_forgotten(
    store: AdapterStore, base: BaseModules, archive: Path, digest: Digest
) -> None:
    (store.root / "unclaimed" / ("b" * 64)).touch()
    store.add_upload(archive, digest, base=base)
    store.tidy()
    assert [mark.name for mark in marks(store)] == [digest.removeprefix("sha256:")]


def test_an_upload_that_is_made_plain_is_found_by_the_digest_it_came_under(
    store: AdapterStore, base: BaseModules, tmp_path: Path
) -> None:
    wrapped = {f"base_model.model._orig_mod.{name.removeprefix('base_model.model.')}": value
               for name, value in lora_weights().items()}  # fmt: skip
    source = write_adapter(tmp_path / "wrapped", wrapped)
    with outgoing(str(source)) as ready:
        (tmp_path / "sent.zip").write_bytes(b"".join(ready.parts()))
        came = ready.digest
    assert not store.holds(came)
    store.add_upload(tmp_path / "sent.zip", came, base=base)
    assert store.holds(came)
    kept = store.claim(came, base=base).digest
    assert kept != came
    assert kept == store.add(str(source), base=base).digest
    store.tidy()
    assert store.claim(came, base=base).digest == kept
    assert drop(store, kept)
    assert not store.holds(came)
    store.tidy()
    assert list((store.root / "plain").iterdir()) == []


def test_what_stands_beside_an_adapter_travels_and_tells_uploads_apart(
    store: AdapterStore, base: BaseModules, adapter: Path, tmp_path: Path
) -> None:
    came, kept = [], []
    for number, text in enumerate(("{{ messages[0].content }}", "Say: {{ messages[0].content }}")):
        source = tmp_path / f"chat-{number}"
        shutil.copytree(adapter, source)
        (source / "chat_template.jinja").write_text(text)
        with outgoing(str(source)) as ready:
            (tmp_path / "sent.zip").write_bytes(b"".join(ready.parts()))
            store.add_upload(tmp_path / "sent.zip", ready.digest, base=base)
            came.append(ready.digest)
        kept.append(store.claim(came[-1], base=base).digest)
        assert kept[-1] == store.add(str(source), base=base).digest
    assert len({*came, *kept}) == 4
