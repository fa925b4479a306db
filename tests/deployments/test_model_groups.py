"""What groups without a base serve, from records and files; and what of them cannot be served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from stacked.config import Design, StorageConfig
from stacked.core import Base, Member, ModelFiles, ModelId
from stacked.deployment.ledger import Ledger
from stacked.errors import (
    AdapterAbsent,
    NotAllowed,
    ParameterInvalid,
    RecordConflict,
    UpdateNotLive,
)
from stacked.registry import GroupRecord
from stacked.store import AdapterStore, ModelStore
from tests.api.control.plane import GROUP, Plane, archive_of, control_plane, stacked_body

ONNX, SCORE, DATA = {"m.onnx": b"1"}, {"score.py": b"own"}, {"m.pkl": b"2"}
CODE = {
    "score.py": b"group's",
    "runtime.yaml": b"MODEL_DEPLOYMENT: {INFERENCE_CONDA_ENV: {INFERENCE_ENV_SLUG: here}}",
}


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    with control_plane(tmp_path, code=True) as made:
        yield made


def group(plane: Plane, kind: str, *contents: dict[str, bytes]) -> GroupRecord:
    """A group of models with these files, under the keys 0, 1, …"""
    entries = []
    for at, files in enumerate(contents):
        id = plane.model()
        plane.ask("POST", f"/models/{id}/artifact", 204, archive_of(**files))
        entries.append({"modelId": id, "inferenceKey": str(at), "weight": 2})
    body = stacked_body(
        modelGroupDetails={"type": kind, "customMetadataList": [{"key": "a", "value": "b"}]},
        memberModelEntries={"memberModelDetails": entries},
    )
    return plane.registry.groups.get(plane.json("POST", "/modelGroups", body=body)["id"])


def members(plane: Plane, of: GroupRecord, store: ModelStore | None = None) -> tuple[Member, ...]:
    models = store or plane.catalogue.models
    ledger = SimpleNamespace(registry=plane.registry, _models=models, artifacts=plane.files)
    return tuple(Ledger._models_of(cast(Ledger, ledger), of))


def contents(plane: Plane, of: GroupRecord) -> list[ModelFiles]:
    found = [member.content for member in members(plane, of)]
    return [each for each in found if isinstance(each, ModelFiles)]


def give_code(plane: Plane, of: GroupRecord, **more: bytes) -> None:
    zip = archive_of(**{f"top/{name}": data for name, data in {**CODE, **more}.items()})
    plane.ask("POST", f"/modelGroups/{of.id}/artifact", 204, zip)


def test_each_member_of_a_heterogeneous_group_is_loaded_by_what_its_files_need(
    plane: Plane,
) -> None:
    made = group(plane, "HETEROGENEOUS", ONNX, {"saved_model.pb": b"3"}, {"m.pt2": b"4"}, SCORE)
    found = contents(plane, made)
    assert [each.runtime for each in found] == ["onnx", "savedmodel", "torch", "score"]
    assert [each.code is not None for each in found] == [False, False, False, True]
    digests = [plane.registry.models.get(member.model_id).digest for member in made.members]
    assert [each.digest for each in found] == digests
    member = members(plane, made)[3]
    assert (member.model_id, member.key, member.weight) == (made.members[3].model_id, "3", 2)


def test_the_code_of_a_homogeneous_group_loads_every_member(plane: Plane) -> None:
    one, two = (group(plane, "HOMOGENEOUS", ONNX, SCORE, DATA) for _ in range(2))
    give_code(plane, one)
    give_code(plane, two, **{"model1.py": b"another module"})
    found, other = contents(plane, one), contents(plane, two)
    codes = {each.code for each in found}
    assert len(codes) == 1
    (code,) = codes
    assert code is not None
    assert (code.python, (code.path / "score.py").read_bytes()) == ("/usr/bin/python3", b"group's")
    assert [each.files for each in found] == [each.files for each in other]
    assert {each.digest for each in found}.isdisjoint(each.digest for each in other)
    assert contents(plane, one) == found, "asked again it is the same"


def test_code_that_was_freed_is_unpacked_again_from_the_artifact(plane: Plane) -> None:
    made = group(plane, "HOMOGENEOUS", DATA)
    give_code(plane, made)
    (before,) = contents(plane, made)
    assert before.code is not None
    store = plane.catalogue.models
    (stored,) = (each for each in store.contents() if each.digest == before.code.digest)
    assert store.remove(stored)
    assert contents(plane, made) == [before]
    assert (before.code.path / "score.py").is_file()


@pytest.mark.parametrize(
    ("kind", "files", "said"),
    [
        ("HOMOGENEOUS", SCORE, "has no artifact; upload one with score.py and runtime.yaml"),
        ("HOMOGENEOUS", DATA, "has no artifact; upload one with score.py and runtime.yaml"),
        ("HETEROGENEOUS", DATA, "has no score.py, and no single file"),
    ],
)
def test_a_member_that_nothing_loads_is_a_conflict(
    plane: Plane, kind: str, files: dict[str, bytes], said: str
) -> None:
    assert len(contents(plane, group(plane, kind, ONNX, ONNX))) == 2
    made = group(plane, kind, ONNX, files)
    with pytest.raises(RecordConflict, match=said) as caught:
        members(plane, made)
    assert made.members[1].model_id in str(caught.value)


@pytest.mark.parametrize("files", [SCORE, {"m.pt2": b""}])
def test_code_that_is_switched_off_meanwhile_is_not_run(
    plane: Plane, files: dict[str, bytes]
) -> None:
    off = ModelStore(plane.catalogue.store.root)
    with pytest.raises(NotAllowed, match=r"models\.code: true"):
        members(plane, group(plane, "HETEROGENEOUS", files), off)
    made = group(plane, "HOMOGENEOUS", ONNX)
    assert len(members(plane, made, off)) == 1
    give_code(plane, made)
    with pytest.raises(NotAllowed, match=r"models\.code: true"):
        members(plane, made, off)


def test_an_environment_that_is_gone_meanwhile_is_named(plane: Plane) -> None:
    made = group(plane, "HOMOGENEOUS", DATA)
    give_code(plane, made)
    with pytest.raises(ParameterInvalid, match="'here' is not here"):
        members(plane, made, ModelStore(plane.catalogue.store.root, code=True))


def test_files_that_are_gone_from_the_store_are_named(plane: Plane) -> None:
    made = group(plane, "HETEROGENEOUS", ONNX)
    for stored in plane.catalogue.models.contents():
        plane.catalogue.models.remove(stored)
    with pytest.raises(AdapterAbsent, match="upload it again"):
        members(plane, made)


def test_a_ledger_gives_such_a_group_whole(plane: Plane, tmp_path: Path) -> None:
    stores = AdapterStore(tmp_path / "store"), plane.catalogue.models
    ledger = Ledger(tmp_path / "other", "tests", *stores, StorageConfig())
    own, ledger.registry, ledger.artifacts = ledger.registry, plane.registry, plane.files
    try:
        made = group(plane, "HETEROGENEOUS", ONNX, ONNX)
        wanted = ledger.wanted(made.id, None)
        assert (wanted.name, wanted.base, wanted.kind) == ("two", None, "HETEROGENEOUS")
        assert wanted.members == members(plane, made)
        assert wanted.metadata == {"a": "b"}
        for entry in made.members:
            model = plane.registry.models.get(entry.model_id)
            told = {**model.extra, "custom_metadata": [{"key": "stacked.gpus", "value": "[1]"}]}
            plane.registry.models.put(replace(model, extra=told))
        pinned = ledger.wanted(made.id, None)
        assert Design.of(pinned.metadata).gpus == {"0": (1,), "1": (1,)}
        expected = [each.content.on_cards((1,)) for each in wanted.members]
        assert [each.content for each in pinned.members] == expected
        base = Base(ModelId("ocid1.datasciencemodel.oc1..base"), "base", "/nowhere")
        for id, served in ((made.id, base), (GROUP, None)):
            with pytest.raises(UpdateNotLive, match="another base needs a restart"):
                ledger.wanted(id, served)
    finally:
        ledger.registry = own
        ledger.close()
