"""What a group tries beside serving its members: experiments behind one key, and shadow traffic.

A file declares them next to the members. They are part of the immutable group: its record carries
each as JSON in its metadata, where OCI's clients can write them too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, ValidationError

from stacked.config.fields import Frozen, Key
from stacked.errors import GroupInvalid

MAX_ARMS = 20

# Before the name of the field, in the metadata of a group's record.
_PREFIX = "stacked."


class ArmConfig(Frozen):
    """One arm: a key of the group, and its share of the units in proportion to the other arms'."""

    key: Key
    weight: float = Field(default=1.0, ge=0, le=1e6)


class ExperimentConfig(Frozen):
    """A key that is answered by one of its arms: always the same one for the same unit."""

    key: Key
    arms: tuple[ArmConfig, ...] = Field(min_length=1, max_length=MAX_ARMS)
    unit: Literal["header", "user", "credential"] = "header"
    """What gets an arm: the header `experiment-unit`, the body's `user`, or the caller."""
    salt: str = Field(default="", max_length=255)
    """Another salt assigns the units anew. Empty: the experiment's key."""


class ShadowConfig(Frozen):
    """Copies of some of a key's requests go to another key, whose answers nobody gets."""

    key: Key
    to: Key
    percent: float = Field(gt=0, le=100)


class Design(Frozen):
    """All that a group declares of this kind."""

    experiments: tuple[ExperimentConfig, ...] = ()
    shadow: tuple[ShadowConfig, ...] = ()

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Self:
        """What a group's metadata says. Raises GroupInvalid."""
        found = {}
        for name in cls.model_fields:
            if text := metadata.get(_PREFIX + name):
                try:
                    found[name] = json.loads(text)
                except ValueError as error:
                    raise GroupInvalid(f"metadata {_PREFIX}{name} is no JSON: {error}") from error
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise GroupInvalid(f"metadata {_PREFIX}{place}: {first['msg']}") from error

    def as_metadata(self) -> dict[str, str]:
        """The entries of a group's metadata that `of` reads: JSON by name."""
        given = self.model_dump(mode="json", include={*Design.model_fields}, exclude_defaults=True)
        return {_PREFIX + name: json.dumps(value) for name, value in given.items()}
