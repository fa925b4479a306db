"""Models that are no adapters: what loads their files, what is refused, and code of groups."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from stacked.core import Code, Digest, Runtime
from stacked.errors import (
    AdapterAbsent,
    AdapterError,
    AdapterTooLarge,
    ArchiveInvalid,
    NotAllowed,
    ParameterInvalid,
    PathUnsafe,
    SourceRefused,
)
from stacked.store import Limits, ModelStore, is_model
from stacked.store.files import copy_tree

SLUG = "generalml_p312_cpu_x86_64_v1"
PYTHONS = {SLUG: "/envs/p312/bin/python"}


def runtime_yaml(**fields: str) -> bytes:
    lines = "".join(f"    {name}: {text}\n" for name, text in fields.items())
    return f"MODEL_DEPLOYMENT:\n  INFERENCE_CONDA_ENV:\n{lines}".encode()


ENVIRONMENT = runtime_yaml(INFERENCE_ENV_SLUG=SLUG, INFERENCE_PYTHON_VERSION="'3.12'")


def zip_of(place: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(place, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return place


def script() -> bytes:
    """The names in a file of TorchScript."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("m/constants.pkl", b"")
        archive.writestr("m/code/__torch__.py", b"")
    return made.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", code=True, pythons=PYTHONS)


@pytest.fixture
def safe(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "safe")


def added(store: ModelStore, place: Path, **files: bytes) -> Digest:
    return store.add(zip_of(place / "a.zip", **files), "it").digest


@pytest.mark.parametrize(
    ("files", "runtime"),
    [
        ({"m.onnx": b"1"}, Runtime.ONNX),
        ({"m.onnx": b"1", "m.onnx.data": b"2", "labels.json": b""}, Runtime.ONNX),
        ({"top/1/model.onnx": b"1", "top/config.pbtxt": b""}, Runtime.ONNX),
        ({"a.onnx": b"1", "model.onnx": b"2"}, Runtime.ONNX),
        ({"saved_model.pb": b"1", "variables/v.index": b""}, Runtime.SAVED_MODEL),
        ({"top/net/saved_model.pb": b"1", "top/x": b""}, Runtime.SAVED_MODEL),
        ({"m.pt2": b"1"}, Runtime.TORCH),
        ({"m.pt": script()}, Runtime.TORCH),
        ({"m.pt": b"tensors alone"}, Runtime.DATA),
        ({"score.py": b"", "model.onnx": b"1"}, Runtime.SCORE),
        ({"top/score.py": b"", "top/sub/x.pkl": b""}, Runtime.SCORE),
        ({"model.joblib": b"1"}, Runtime.DATA),
        ({"a.onnx": b"1", "b.onnx": b"2"}, Runtime.DATA),
        ({"weights.csv": b"1"}, Runtime.DATA),
        ({"__MACOSX/._m.onnx": b"", "top/m.onnx": b"1"}, Runtime.ONNX),
    ],
)
def test_the_files_of_a_model_show_what_loads_it(
    store: ModelStore, tmp_path: Path, files: dict[str, bytes], runtime: Runtime
) -> None:
    digest = added(store, tmp_path, **files)
    found = store.read(digest)
    assert (found.runtime, found.digest) == (runtime, digest)
    assert found.path == store.path(digest)
    wanted = sum(len(data) for name, data in files.items() if not name.startswith("__"))
    assert found.bytes == wanted


def test_torchs_own_files_are_told_apart(store: ModelStore, tmp_path: Path) -> None:
    import torch

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    torch.jit.script(Twice()).save(str(tmp_path / "script.pt"))  # type: ignore[no-untyped-call]
    torch.save({"weight": torch.ones(2)}, tmp_path / "state.pt")
    runtimes = [store.add(tmp_path / name, name).runtime for name in ("script.pt", "state.pt")]
    assert runtimes == [Runtime.TORCH, Runtime.DATA]


def test_the_same_files_are_one_content_however_they_come(
    store: ModelStore, tmp_path: Path
) -> None:
    place = tmp_path / "m"
    (place / "variables").mkdir(parents=True)
    (place / "saved_model.pb").write_bytes(b"graph")
    (place / "variables" / "v").write_bytes(b"values")
    made = store.add(place, "m")
    digest = made.digest
    assert made.bytes == len(b"graphvalues")
    files = {"saved_model.pb": b"graph", "variables/v": b"values"}
    assert added(store, tmp_path, **files) == digest
    assert added(store, tmp_path, **{f"top/{name}": data for name, data in files.items()}) == digest
    assert added(store, tmp_path, **{**files, "variables/v": b"others"}) != digest
    assert added(store, tmp_path, **{"saved_model.pb": b"graph", "v": b"values"}) != digest
    stored = store.path(digest)
    assert all(path.stat().st_mode & 0o222 == 0 for path in (stored, *stored.rglob("*")))
    (tmp_path / "any.onnx").write_bytes(b"1")
    alone = store.add(tmp_path / "any.onnx", "named by a client.ONNX").digest
    assert alone == added(store, tmp_path, **{"model.onnx": b"1"})


@pytest.mark.parametrize(
    ("files", "error", "said"),
    [
        ({"score.py": b"", "m.onnx": b""}, NotAllowed, "models.code: true"),
        ({"m.pkl": b""}, NotAllowed, "models.code: true"),
        ({"sub/model.joblib": b""}, NotAllowed, "models.code: true"),
        ({"m.pt": script()}, NotAllowed, "models.code: true"),
        ({"m.pt": b"tensors"}, NotAllowed, "models.code: true"),
        ({"m.pt2": b""}, NotAllowed, "models.code: true"),
        ({"m.keras": b""}, ArchiveInvalid, "export a SavedModel"),
        ({"m.h5": b""}, ArchiveInvalid, "export a SavedModel"),
        ({"a.onnx": b"", "b.onnx": b""}, ArchiveInvalid, "one .onnx file"),
        ({"config.json": b""}, ArchiveInvalid, "neither an adapter"),
        ({}, ArchiveInvalid, "neither an adapter"),
    ],
)
def test_where_code_is_off_only_what_runs_none_is_taken(
    safe: ModelStore, tmp_path: Path, files: dict[str, bytes], error: type[Exception], said: str
) -> None:
    assert safe.get(added(safe, tmp_path, **{"m.onnx": b"", "scaler.pkl": b""})).runtime == "onnx"
    assert safe.get(added(safe, tmp_path, **{"saved_model.pb": b""})).runtime == "savedmodel"
    before = {each.digest for each in safe.contents()}
    with pytest.raises(error, match=said):
        added(safe, tmp_path, **files)
    assert {each.digest for each in safe.contents()} == before


def test_where_code_is_on_keras_still_needs_a_score_py(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ArchiveInvalid, match="export a SavedModel"):
        added(store, tmp_path, **{"m.keras": b""})
    files = {"m.keras": b"", "score.py": b""}
    assert store.get(added(store, tmp_path, **files)).runtime is Runtime.SCORE
    with pytest.raises(ArchiveInvalid, match="neither"):
        added(store, tmp_path)


def test_what_was_taken_while_code_was_on_is_refused_when_it_is_off(
    store: ModelStore, tmp_path: Path
) -> None:
    digest = added(store, tmp_path, **{"score.py": b""})
    code = store.add_code(zip_of(tmp_path / "c.zip", **{"score.py": b""}), "it")
    later = ModelStore(tmp_path / "store")
    with pytest.raises(NotAllowed, match=r"models\.code: true"):
        later.get(digest)
    with pytest.raises(NotAllowed, match=r"models\.code: true"):
        later.add_code(zip_of(tmp_path / "c.zip", **{"score.py": b""}), "it")
    assert later.path(code.digest).is_dir()
    with pytest.raises(AdapterAbsent, match="upload it again"):
        later.get(Digest("sha256:" + "0" * 64))


# -- code ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model_group_live/"])
def test_a_groups_code_loads_its_members_and_makes_other_contents_of_them(
    store: ModelStore, tmp_path: Path, prefix: str
) -> None:
    files = {"score.py": b"1", "model1.py": b"2", "runtime.yaml": ENVIRONMENT}
    code = store.add_code(
        zip_of(tmp_path / "c.zip", **{prefix + name: data for name, data in files.items()}), "it"
    )
    assert code == Code(code.digest, store.path(code.digest), PYTHONS[SLUG])
    assert sorted(path.name for path in code.path.iterdir()) == sorted(files)
    digest = added(store, tmp_path, **{"model.onnx": b"x"})
    alone, member = store.get(digest), store.get(digest, code)
    assert (member.path, member.runtime, member.code) == (alone.path, "data", code)
    assert member.digest != alone.digest == digest
    assert member.stored == {digest, code.digest}
    other = store.add_code(zip_of(tmp_path / "c.zip", **{"score.py": b"3"}), "it")
    assert other.python == ""
    assert store.get(digest, other).digest != member.digest


def test_a_score_py_of_its_own_runs_in_the_environment_that_it_names(
    store: ModelStore, tmp_path: Path
) -> None:
    digest = added(store, tmp_path, **{"score.py": b"", "runtime.yaml": ENVIRONMENT})
    found = store.get(digest)
    assert found.code == Code(digest, store.path(digest), PYTHONS[SLUG])
    assert (found.digest, found.stored) == (digest, {digest})
    published = runtime_yaml(INFERENCE_ENV_PATH="oci://mine@tenancy/env")
    elsewhere = added(store, tmp_path, **{"score.py": b"", "runtime.yaml": published})
    with pytest.raises(ParameterInvalid, match="oci://mine@tenancy/env"):
        store.get(elsewhere)
    code = store.add_code(zip_of(tmp_path / "c.zip", **{"score.py": b""}), "it")
    assert store.get(elsewhere, code).code is code, "its group's environment counts"


def test_an_environment_that_is_not_here_is_refused_by_name(
    store: ModelStore, tmp_path: Path
) -> None:
    before = {each.digest for each in store.contents()}
    yaml = runtime_yaml(INFERENCE_ENV_SLUG="pyt_p39")
    archive = zip_of(tmp_path / "c.zip", **{"score.py": b"", "runtime.yaml": yaml})
    with pytest.raises(ParameterInvalid, match=f"'pyt_p39' is not here .known: '{SLUG}'"):
        store.add_code(archive, "it")
    with pytest.raises(ArchiveInvalid, match=r"has no score\.py"):
        store.add_code(zip_of(tmp_path / "c.zip", **{"a/b/score.py": b"", "c": b""}), "it")
    assert {each.digest for each in store.contents()} == before


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"MODEL_DEPLOYMENT:\n",
        b"MODEL_DEPLOYMENT: {INFERENCE_CONDA_ENV: }",
        runtime_yaml(INFERENCE_ENV_SLUG=""),
        b"other: 1",
    ],
)
def test_a_runtime_yaml_that_names_no_environment_means_this_python(
    store: ModelStore, tmp_path: Path, text: bytes
) -> None:
    archive = zip_of(tmp_path / "c.zip", **{"score.py": b"", "runtime.yaml": text})
    assert store.add_code(archive, "it").python == ""


@pytest.mark.parametrize(
    "text",
    [
        b"- a list",
        b"MODEL_DEPLOYMENT: text",
        b"MODEL_DEPLOYMENT: {INFERENCE_CONDA_ENV: [1]}",
        b"a: b: c",
        b"\xff\xfe\xfd",
        b"[" * 5000,
        b"? {a: 1}\n: 2",
        b"!!python/object/apply:os.system [id]\n",
    ],
)
def test_a_runtime_yaml_that_is_none_is_refused(
    store: ModelStore, tmp_path: Path, text: bytes
) -> None:
    archive = zip_of(tmp_path / "c.zip", **{"score.py": b"", "runtime.yaml": text})
    with pytest.raises(ParameterInvalid, match=r"runtime\.yaml: expected MODEL_DEPLOYMENT"):
        store.add_code(archive, "it")


def test_references_in_a_runtime_yaml_do_not_multiply(store: ModelStore, tmp_path: Path) -> None:
    """Merged with every reference followed, these would be 10 to the 30th keys."""
    levels = ["a0: &a0 {x: 1}"]
    for at in range(1, 31):
        levels.append(f"a{at}: &a{at} {{<<: [{', '.join([f'*a{at - 1}'] * 10)}]}}")
    files = {"score.py": b"", "runtime.yaml": "\n".join(levels).encode()}
    assert store.add_code(zip_of(tmp_path / "c.zip", **files), "it").python == ""


# -- hostile sources ------------------------------------------------------------------------


def raw_zip(place: Path, *members: tuple[str, int]) -> Path:
    """Members by name and Unix mode."""
    with zipfile.ZipFile(place, "w") as archive:
        for name, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, b"x")
    return place


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ([("../m.onnx", 0)], PathUnsafe),
        ([("/m.onnx", 0)], PathUnsafe),
        ([("m.onnx", 0), ("a\\b", 0)], PathUnsafe),
        ([("m.onnx", 0o120777)], PathUnsafe),
        ([("m.onnx", 0o010644)], PathUnsafe),
        ([("m.onnx", 0), ("n" * 256, 0)], PathUnsafe),
        ([("m.onnx", 0), ("d/" * 40 + "f", 0)], PathUnsafe),
        ([("m.onnx", 0), ("a", 0), ("a/b", 0)], ArchiveInvalid),
        ([("m.onnx", 0), ("a/b", 0), ("a", 0)], ArchiveInvalid),
        ([("m.onnx", 0), ("m.onnx", 0)], ArchiveInvalid),
        ([(".", 0)], ArchiveInvalid),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_leads_out_or_clashes_is_refused_whole(
    safe: ModelStore, tmp_path: Path, members: list[tuple[str, int]], error: type[Exception]
) -> None:
    with pytest.raises(error):
        safe.add(raw_zip(tmp_path / "a.zip", *members), "it")
    assert list(safe.contents()) == []
    assert list((tmp_path / "safe" / "unpacking").iterdir()) == []


def test_what_is_no_zip_or_unpacks_to_far_more_is_refused(safe: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no zip")
    with pytest.raises(ArchiveInvalid, match="cannot be read as a zip"):
        safe.add(tmp_path / "a", "it")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.onnx", bytes(32 << 20))
    with pytest.raises(AdapterTooLarge, match="zip bomb"):
        safe.add(tmp_path / "bomb.zip", "it")


def test_links_in_a_directory_stay_in_it(safe: ModelStore, tmp_path: Path) -> None:
    place, outside = tmp_path / "m", tmp_path / "outside"
    place.mkdir()
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (place / "m.onnx").write_bytes(b"1")
    (place / "again").symlink_to("m.onnx")
    digest = safe.add(place, "m").digest
    copy = safe.path(digest) / "again"
    assert (copy.is_symlink(), copy.read_bytes()) == (False, b"1")
    for target in (outside / "secret", outside, Path("/nothing")):
        link = place / "link"
        link.symlink_to(target)
        with pytest.raises(AdapterError, match="leads out"):
            safe.add(place, "m")
        link.unlink()
    os.mkfifo(place / "pipe")
    with pytest.raises(PathUnsafe, match="not a regular file"):
        safe.add(place, "m")
    assert [each.digest for each in safe.contents()] == [digest]


def test_nothing_outside_the_roots_is_read(safe: ModelStore, tmp_path: Path) -> None:
    place, inside = tmp_path / "m", tmp_path / "roots"
    place.mkdir()
    inside.mkdir()
    (place / "m.onnx").write_bytes(b"1")
    for source in (place, place / "m.onnx"):
        with pytest.raises(SourceRefused, match="outside the directories"):
            safe.add(source, source.name, [inside])
        assert safe.add(source, source.name, [tmp_path])


def test_a_directory_is_copied_within_limits(tmp_path: Path) -> None:
    place = tmp_path / "m"
    place.mkdir()
    for name in "abc":
        (place / name).write_bytes(b"1234")
    for limits in (Limits(max_members=2), Limits(max_bytes=11)):
        target = tmp_path / f"copy-{limits.max_members}"
        target.mkdir()
        with pytest.raises(AdapterTooLarge):
            copy_tree(place, target, limits, None, "")


def test_a_source_is_a_model_by_its_names(tmp_path: Path) -> None:
    for name, is_one in (("m.onnx", True), ("m.pt", True), ("m.zip", False), ("none", False)):
        assert is_model(tmp_path / name) is is_one
    for name in ("score.py", "saved_model.pb", "x.ONNX"):
        place = tmp_path / f"with {name}"
        place.mkdir()
        assert not is_model(place)
        (place / name).touch()
        assert is_model(place)


def test_a_model_that_nobody_needs_is_removed_whole(store: ModelStore, tmp_path: Path) -> None:
    digest = added(store, tmp_path, **{"saved_model.pb": b"1", "a/b/c/d": b"23"})
    (stored,) = store.contents()
    assert (stored.kind, stored.digest) == ("model", digest)
    assert store.used_ns(digest) == stored.used_ns
    assert added(store, tmp_path, **{"saved_model.pb": b"1", "a/b/c/d": b"23"}) == digest
    assert not store.remove(stored), "it was used since"
    (stored,) = store.contents()
    assert store.remove(stored)
    assert list(store.contents()) == []
    assert list((tmp_path / "store" / "unpacking").iterdir()) == []
