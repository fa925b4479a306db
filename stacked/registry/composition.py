"""Whether models make a group: the rules of each kind, in one pure function."""

from __future__ import annotations

from collections.abc import Mapping

from stacked.config import BaseConfig, Design
from stacked.core import MAX_MEMBERS, check_key
from stacked.errors import GroupInvalid, RecordConflict
from stacked.registry.records import GroupMember, GroupRecord, Model
from stacked.registry.states import ModelState

STACKED, HOMOGENEOUS = "STACKED", "HOMOGENEOUS"


def check_composition(group: GroupRecord, models: Mapping[str, Model]) -> None:
    """Raise GroupInvalid, or RecordConflict if a model is not ready; `models` are by id.

    A STACKED group is one base, which is a member, and at most 500 adapters that were checked
    against it; the other kinds are at most 500 models that need no base. Keys are unique in every
    kind of group, and its experiments are on these keys.
    """
    _check_members(group)
    keys = {member.key for member in group.members}
    if any(each == GroupMember(str(group.base_model_id)) for each in group.members):
        keys.add(BaseConfig.model_fields["key"].default)  # unless its deployment names it
    Design.of(group.metadata).check(keys, group.kind)
    for member in group.members:
        model = models[member.model_id]
        if model.state is not ModelState.ACTIVE:
            raise RecordConflict(
                f"model {model.id} is {model.state.value}; only ACTIVE models can be members"
            )
    if group.kind == STACKED:
        _check_stacked(group, models)
        return
    for member in group.members:
        _check_content(
            models[member.model_id], "model", f"members of a {group.kind} group need no base"
        )


def _check_members(group: GroupRecord) -> None:
    if not group.members:
        raise GroupInvalid("a group has at least one member")
    fine_tunes = sum(member.model_id != group.base_model_id for member in group.members)
    if fine_tunes > MAX_MEMBERS:
        raise GroupInvalid(
            f"the group has {fine_tunes} members; at most {MAX_MEMBERS} are allowed"
            + (" besides its base" if group.base_model_id else "")
        )
    keys: set[str] = set()
    seen: set[GroupMember] = set()
    for member in group.members:
        if member in seen and member.key is None:
            raise GroupInvalid(f"model {member.model_id} is in the group twice, without keys")
        if member.key is not None and check_key(member.key) in keys:
            raise GroupInvalid(
                f"inference key {member.key!r} is used twice; keys are unique in a group"
            )
        seen.add(member)
        keys |= {member.key} if member.key is not None else set()


def _check_stacked(group: GroupRecord, models: Mapping[str, Model]) -> None:
    base_id = group.base_model_id
    entries = [member for member in group.members if member.model_id == base_id]
    if base_id is None or not entries:
        raise GroupInvalid(f"the base {base_id} must be a member of a STACKED group")
    if len(entries) > 1:
        raise GroupInvalid(f"the base {base_id} is a member {len(entries)} times; once is enough")
    base = models[base_id]
    _check_content(base, "base", "baseModelId must name a base")
    for member in group.members:
        model = models[member.model_id]
        if model.id == base_id:
            continue
        _check_content(model, "adapter", "members of a STACKED group besides its base are adapters")
        if model.base_model_id is None:
            raise GroupInvalid(f"model {model.id} was not checked against a base; upload it again")
        if not _is_of(model, base, models):
            raise GroupInvalid(
                f"model {model.id} is an adapter of base {model.base_model_id}, and the group's "
                f"base is {base_id}"
            )


def _check_content(model: Model, kind: str, rule: str) -> None:
    if not model.kind:
        raise RecordConflict(f"model {model.id} has no artifact yet; upload one first")
    if model.kind != kind:
        raise GroupInvalid(f"model {model.id} is of kind {model.kind}; {rule}")


def _is_of(adapter: Model, base: Model, models: Mapping[str, Model]) -> bool:
    """Whether an adapter was checked against this base, under this id or another one of it."""
    checked = adapter.base_model_id
    if checked == base.id:
        return True
    other = models.get(checked) if checked else None
    # The digest of a base that is stored by reference is no hash of weights: its place counts too.
    return other is not None and (other.digest, other.source) == (base.digest, base.source)
