"""Contents by digest that several data directories share, in a directory and in an object store."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stacked.core import Digest
from stacked.errors import (
    AdapterAbsent,
    ArchiveInvalid,
    ConfigInvalid,
    SourceNotFound,
    StoreDamaged,
    StoreUnusable,
)
from stacked.store import (
    AdapterStore,
    ArtifactFiles,
    BaseModules,
    BaseStore,
    ModelStore,
    SharedContents,
)
from tests.store.small import write_adapter, write_base
from tests.store.test_models import zip_of


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "directory":
        return str(tmp_path / "shared")
    request.getfixturevalue("s3")
    return "s3://bucket/contents/"


def adapters(root: Path, place: str) -> AdapterStore:
    return AdapterStore(root, shared=SharedContents(place))


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file()
    }


def test_an_adapter_that_one_machine_added_is_there_on_another(
    tmp_path: Path, place: str, base: BaseModules, adapter: Path
) -> None:
    one, other = adapters(tmp_path / "one", place), adapters(tmp_path / "other", place)
    added = one.add(str(adapter), base=base)
    found = other.get(added.digest)
    assert found.path == tmp_path / "other" / "adapters" / added.digest.removeprefix("sha256:")
    assert files_of(found.path) == files_of(added.path)
    other.verify(added.digest)
    assert other.claim(added.digest, base=base).digest == added.digest
    assert other.holds(added.digest)


def test_what_is_fetched_is_fetched_once(
    tmp_path: Path, place: str, base: BaseModules, adapter: Path
) -> None:
    digest = adapters(tmp_path / "one", place).add(str(adapter), base=base).digest
    adapters(tmp_path / "other", place).get(digest)
    alone = AdapterStore(tmp_path / "other")  # without the shared place
    assert alone.get(digest).digest == digest


def test_many_threads_ask_for_one_adapter_at_once(
    tmp_path: Path, place: str, base: BaseModules, adapter: Path
) -> None:
    digest = adapters(tmp_path / "one", place).add(str(adapter), base=base).digest
    other = adapters(tmp_path / "other", place)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: other.get(digest), range(6)))
    assert {each.digest for each in found} == {digest}
    assert list((tmp_path / "other" / "staging").iterdir()) == []


def test_what_nobody_added_is_absent(tmp_path: Path, place: str) -> None:
    store = adapters(tmp_path, place)
    absent = Digest("sha256:" + "0" * 64)
    with pytest.raises(AdapterAbsent):
        store.get(absent)
    assert not store.holds(absent)
    with pytest.raises(AdapterAbsent):
        store.get(Digest("../../etc"))


def test_what_was_there_before_is_shared_when_it_is_claimed(
    tmp_path: Path, place: str, base: BaseModules, adapter: Path
) -> None:
    digest = AdapterStore(tmp_path / "one").add(str(adapter), base=base).digest
    adapters(tmp_path / "one", place).claim(digest, base=base)
    assert adapters(tmp_path / "other", place).get(digest).digest == digest


def test_another_adapter_under_a_digest_is_refused(tmp_path: Path, base: BaseModules) -> None:
    place = tmp_path / "shared"
    one = adapters(tmp_path / "one", str(place))
    first = one.add(str(write_adapter(tmp_path / "a", seed=1)), base=base).digest
    second = one.add(str(write_adapter(tmp_path / "b", seed=2)), base=base).digest
    names = [place / "adapters" / f"{each.removeprefix('sha256:')}.zip" for each in (first, second)]
    shutil.copyfile(*names)
    other = adapters(tmp_path / "other", str(place))
    with pytest.raises(StoreDamaged, match="is not what its name says"):
        other.get(second)
    assert other.get(first).digest == first
    names[0].write_bytes(b"no zip")
    with pytest.raises(ArchiveInvalid):
        adapters(tmp_path / "third", str(place)).get(first)


def test_models_and_bases_are_shared(tmp_path: Path, place: str) -> None:
    shared = SharedContents(place)
    one = ModelStore(tmp_path / "one", shared=shared)
    files = {"folder/model.onnx": b"onnx", "folder/inner/notes.txt": b"n"}
    digest = one.add(zip_of(tmp_path / "m.zip", **files), "m.zip").digest
    other = ModelStore(tmp_path / "other", shared=SharedContents(place))
    found = other.find(digest)
    assert found is not None
    assert found.digest == digest
    assert files_of(other.path(digest)) == files_of(one.path(digest))
    assert other.get(digest).runtime is one.get(digest).runtime
    packed = Path(shutil.make_archive(str(tmp_path / "b"), "zip", write_base(tmp_path / "written")))
    bases = BaseStore(tmp_path / "one", shared=shared)
    digest, _ = bases.add(packed, "b.zip")
    base = BaseStore(tmp_path / "other", shared=SharedContents(place)).path(digest)
    assert files_of(base) == files_of(bases.path(digest))
    with pytest.raises(AdapterAbsent):
        other.path(digest)  # of another kind
    assert other.find(digest) is None


def test_uploaded_files_are_shared(tmp_path: Path, place: str) -> None:
    one = ArtifactFiles(tmp_path / "one", (), SharedContents(place))
    with one.receive() as incoming:
        incoming.write(b"as it was sent")
        incoming.finish()
        one.share(incoming)
        one.keep(incoming)
    other = ArtifactFiles(tmp_path / "other", (), SharedContents(place))
    with other.open(incoming.sha256) as file:
        assert file.read() == b"as it was sent"
    with pytest.raises(StoreDamaged, match="upload it again"):
        other.open("0" * 64)


def test_an_uploaded_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "shared"
    (place / "files").mkdir(parents=True)
    (place / "files" / ("0" * 64)).write_bytes(b"changed")
    files = ArtifactFiles(tmp_path / "one", (), SharedContents(str(place)))
    with pytest.raises(StoreDamaged, match="is not what its name says"):
        files.open("0" * 64)
    assert [each.name for each in files.root.rglob("*")] == ["incoming"]


def test_a_place_that_cannot_be_written_refuses_what_is_added(
    tmp_path: Path, base: BaseModules, adapter: Path, s3: object
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnusable, match="shared place of contents"):
        adapters(tmp_path / "one", str(tmp_path / "file")).add(str(adapter), base=base)
    away = adapters(tmp_path / "two", "s3://no-such-bucket/x")
    with pytest.raises(SourceNotFound, match="s3://no-such-bucket/x"):
        away.add(str(adapter), base=base)


def test_a_place_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"storage\.contents: ftp://host/x"):
        SharedContents("ftp://me:secret@host/x")


def test_the_zip_of_a_content_is_the_same_on_every_machine(
    tmp_path: Path, base: BaseModules, adapter: Path
) -> None:
    packed = []
    for name in ("one", "two"):
        store = adapters(tmp_path / name, str(tmp_path / f"{name}-shared"))
        digest = store.add(str(adapter), base=base).digest
        (archive,) = (tmp_path / f"{name}-shared" / "adapters").iterdir()
        assert archive.name == f"{digest.removeprefix('sha256:')}.zip"
        packed.append(archive.read_bytes())
    assert packed[0] == packed[1]
