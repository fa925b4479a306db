"""What a group without a base serves: its members' files, and the code that loads them."""

from __future__ import annotations

from pathlib import Path

from stacked.core import Code, Member, ModelFiles, ModelId, Runtime, check_digest
from stacked.errors import RecordConflict
from stacked.registry import GroupRecord, Model, Registry
from stacked.registry.composition import HOMOGENEOUS
from stacked.store import ModelStore


def members_of(
    group: GroupRecord, registry: Registry, store: ModelStore, artifacts: Path
) -> tuple[Member, ...]:
    """The members of a recorded group; `artifacts`: the directory of the uploaded files.

    Raises RecordConflict, NotAllowed, ParameterInvalid, AdapterAbsent for what cannot be served.
    """
    code = _code_of(group, registry, store, artifacts)
    models = registry.models.get_many([entry.model_id for entry in group.members])
    members = []
    for entry in group.members:
        model = models[entry.model_id]
        content = store.get(check_digest(model.digest), code)
        if code is None:
            _check_alone(group, model, content)
        members.append(Member(ModelId(entry.model_id), content, entry.key, entry.weight))
    return tuple(members)


def _code_of(
    group: GroupRecord, registry: Registry, store: ModelStore, artifacts: Path
) -> Code | None:
    """The group's own code, unpacked from its artifact unless it is in the store already."""
    for artifact in registry.artifacts.of(group.id):
        return store.add_code(artifacts / artifact.sha256, "the artifact of the group")
    return None


def check_alone(name: str, content: ModelFiles) -> None:
    """Raises RecordConflict for files that neither a runtime nor a score.py of theirs loads."""
    if content.runtime is Runtime.DATA:
        raise RecordConflict(
            f"{name} has no score.py, and no single file that a runtime loads (.onnx, "
            "saved_model.pb, TorchScript or .pt2); use another one that has"
        )


def _check_alone(group: GroupRecord, model: Model, content: ModelFiles) -> None:
    """Refuse a member that only a group's score.py can load."""
    if group.kind == HOMOGENEOUS and content.runtime in (Runtime.SCORE, Runtime.DATA):
        raise RecordConflict(
            f"model {model.id} is loaded by a score.py, and group {group.id} has no artifact; "
            f"upload one with score.py and runtime.yaml: POST …/modelGroups/{group.id}/artifact"
        )
    check_alone(f"model {model.id}", content)
