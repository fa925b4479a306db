"""What a group says beside its members: experiments, shadow traffic, its gates, and its cards.

A file declares them next to the members. They are part of the immutable group: its record carries
each as JSON in its metadata, where OCI's clients can write them too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from stacked.config.evaluations import EvaluationConfig
from stacked.config.fields import Frozen, Key
from stacked.errors import GroupInvalid

MAX_ARMS = 20
# Each is made anew between two requests whenever the routing table changes.
MAX_EXPERIMENTS = 50
# Every request goes through them.
MAX_SHADOWS = 20

UnitKind = Literal["header", "user", "credential"]
MAX_GATES_BYTES = 256 * 1024
"""Of all evaluation sets of a group, which every reader of its record gets."""

# Before the name of the field, in the metadata of a group's record.
_PREFIX = "stacked."
CARDS = f"{_PREFIX}gpus"
"""The metadata of a model that pins it in whatever group it is: a list of cards, as JSON."""

Cards = Annotated[
    tuple[Annotated[int, Field(ge=0, strict=True)], ...], Field(min_length=1, max_length=64)
]


class ArmConfig(Frozen):
    """One arm: a key of the group, and its share of the units in proportion to the other arms'."""

    key: Key
    weight: float = Field(default=1.0, ge=0, le=1e6)


class ExperimentConfig(Frozen):
    """A key that is answered by one of its arms: always the same one for the same unit."""

    key: Key
    arms: tuple[ArmConfig, ...] = Field(min_length=1, max_length=MAX_ARMS)
    unit: UnitKind = "header"
    """What gets an arm: the header `experiment-unit`, the body's `user`, or the caller."""
    salt: str = Field(default="", max_length=255)
    """Another salt assigns the units anew. Empty: the experiment's key."""

    @model_validator(mode="after")
    def _arms_differ(self) -> Self:
        keys = [arm.key for arm in self.arms]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"arm {min(twice)!r} is there twice")
        if not any(arm.weight for arm in self.arms):
            raise ValueError("every arm has weight 0; give one of them more")
        return self

    def __str__(self) -> str:
        """The weights as people write them: `50/50`."""
        return "/".join(f"{arm.weight:g}" for arm in self.arms)


class ShadowConfig(Frozen):
    """Copies of some of a key's requests go to another key, whose answers nobody gets."""

    key: Key
    to: Key
    percent: float = Field(gt=0, le=100)


class Design(Frozen):
    """All that a group declares of this kind."""

    experiments: tuple[ExperimentConfig, ...] = Field(default=(), max_length=MAX_EXPERIMENTS)
    shadow: tuple[ShadowConfig, ...] = Field(default=(), max_length=MAX_SHADOWS)
    gates: tuple[EvaluationConfig, ...] = ()
    """What adapters must pass before a LIVE update switches to them."""
    gpus: dict[Key, Cards] = Field(default_factory=dict)
    """The cards that compute for a key, by their numbers from 0."""

    @field_validator("gates")
    @classmethod
    def _gates_judge(cls, gates: tuple[EvaluationConfig, ...]) -> tuple[EvaluationConfig, ...]:
        names = [gate.name for gate in gates]
        for gate in gates:
            gate.check_gate()
            if names.count(gate.name) > 1:
                raise ValueError(f"two gates are called {gate.name}")
        if (size := sum(len(gate.model_dump_json()) for gate in gates)) > MAX_GATES_BYTES:
            raise ValueError(
                f"the evaluation sets have {size} bytes; at most {MAX_GATES_BYTES} travel with a "
                "group: leave examples out"
            )
        return gates

    @property
    def keys(self) -> frozenset[str]:
        """The keys of its experiments."""
        return frozenset(one.key for one in self.experiments)

    def seen_by(self, keys: Collection[str]) -> Design:
        """What it is for a caller who may use these keys: an experiment's own is enough."""
        own = tuple(one for one in self.experiments if one.key in keys)
        return Design(experiments=own, gpus=self.gpus)

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Self:
        """What a group's metadata says. Raises GroupInvalid."""
        found = {}
        for name in cls.model_fields:
            if text := metadata.get(_PREFIX + name):
                found[name] = _json(text, _PREFIX + name)
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise GroupInvalid(f"metadata {_PREFIX}{place}: {first['msg']}") from error

    def check(
        self, keys: Collection[str | None], kind: str, place: str = f"metadata {_PREFIX}"
    ) -> Self:
        """Itself if it fits a group of a kind with these keys, the base's included.

        `place` is where it stands, before the name of a field. Raises GroupInvalid.
        """
        known = set(keys)
        if missing := self.gpus.keys() - known:
            raise GroupInvalid(f"{place}gpus: no model of the group has key {min(missing)!r}")
        for at, one in enumerate(self.experiments):
            where = f"{place}experiments.{at}"
            if one.unit == "user" and kind != "STACKED":
                raise GroupInvalid(
                    f"{where}.unit: user stands in a body, which a {kind} group's models alone "
                    "read; use header or credential"
                )
            if one.key in known:
                raise GroupInvalid(
                    f"{where}.key: {one.key!r} is another model's key; use a new one"
                )
            for number, arm in enumerate(one.arms):
                if arm.key not in keys:
                    raise GroupInvalid(
                        f"{where}.arms.{number}.key: no model of the group has key {arm.key!r}"
                    )
            known.add(one.key)
        for at, gate in enumerate(self.gates):
            if kind != "STACKED":
                raise GroupInvalid(
                    f"{place}gates.{at}: a gate judges adapters, and a {kind} group has none"
                )
            if missing := set(gate.keys).difference(keys):
                raise GroupInvalid(
                    f"{place}gates.{at}.keys: no model of the group has key {min(missing)!r}; a "
                    "gate judges members, such as an experiment's arms"
                )
        for at, pair in enumerate(self.shadow):
            where = f"{place}shadow.{at}"
            if kind != "STACKED":
                raise GroupInvalid(
                    f"{where}: the bodies of a {kind} group are its models' own and cannot be "
                    "compared; leave shadow out"
                )
            if pair.key not in known or pair.to not in keys:
                name, field = (pair.key, "key") if pair.key not in known else (pair.to, "to")
                raise GroupInvalid(f"{where}.{field}: no model of the group has key {name!r}")
            if any((pair.key, pair.to) == (each.key, each.to) for each in self.shadow[:at]):
                raise GroupInvalid(
                    f"{where}: {pair.key!r} is already copied to {pair.to!r}; keep one of them"
                )
        return self

    def with_cards(self, own: Mapping[str, str]) -> Self:
        """With the cards that models have in their own metadata, JSON by key. Raises GroupInvalid.

        What the group itself says of a key counts more.
        """
        found = {key: _json(text, f"{CARDS} of model {key!r}") for key, text in own.items()}
        of_models = Design.of({CARDS: json.dumps(found)})
        return self.model_copy(update={"gpus": {**of_models.gpus, **self.gpus}})

    def check_cards(self, cards: int | None) -> None:
        """Raises GroupInvalid where a key is pinned to a card that is not one of so many."""
        for key, wanted in self.gpus.items():
            if cards is not None and max(wanted) >= cards:
                there = f"has {cards}, numbered from 0" if cards else "has none"
                raise GroupInvalid(
                    f"{CARDS}: {key!r} is pinned to card {max(wanted)}, and this server {there}"
                )

    def as_metadata(self) -> dict[str, str]:
        """The entries of a group's metadata that `of` reads: JSON by name."""
        given = self.model_dump(mode="json", include={*Design.model_fields}, exclude_defaults=True)
        return {_PREFIX + name: json.dumps(value) for name, value in given.items()}


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise GroupInvalid(f"metadata {name} is no JSON: {error}") from error
