"""What the bodies of all resources share: names, tags, metadata, and how a change is found.

Pure. It must not know any one resource.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from stacked.errors import ParameterInvalid

Json = dict[str, Any]

# Clients leave out what is null; a null that is sent means the same.
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
Name = Annotated[Text, Field(max_length=255)]
Description = Annotated[Text, Field(max_length=400)]
Items = dict[str, Any]


class Body(BaseModel):
    """Unknown fields are ignored: the SDK sends what its models have, and dicts as they are."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="ignore", frozen=True, protected_namespaces=()
    )


class MetadataItem(Body):
    """One entry of a group's metadata."""

    key: Text = ""
    value: Text = ""
    description: str | None = None
    category: str | None = None


class Tagged(Body):
    """What is created: its name, where it belongs, its tags."""

    display_name: Name = ""
    compartment_id: Text = ""
    project_id: Text = ""
    freeform_tags: Items | None = None
    defined_tags: Items | None = None

    def tags(self) -> Json:
        given = {"freeform": self.freeform_tags, "defined": self.defined_tags}
        return {name: value for name, value in given.items() if value}


class Described(Body):
    """What is updated: a field that is left out stays."""

    display_name: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    description: Annotated[str, Field(max_length=400)] | None = None
    freeform_tags: Items | None = None
    defined_tags: Items | None = None

    def described(self, tags: Mapping[str, Any]) -> Json:
        """The columns of a record that change; `tags` are those that it has."""
        given = {"freeform": self.freeform_tags, "defined": self.defined_tags}
        new = {name: value for name, value in given.items() if value is not None}
        columns = {"display_name": self.display_name, "description": self.description}
        changes: Json = {name: value for name, value in columns.items() if value is not None}
        return {**changes, "tags": {**tags, **new}} if new else changes


class ChangeCompartment(Body):
    """`POST …/actions/changeCompartment`."""

    compartment_id: Annotated[str, Field(min_length=1)]


def not_yet(what: str) -> ParameterInvalid:
    return ParameterInvalid(f"{what} is not served yet; see docs/control-plane.md")


def changed_places(given: Mapping[str, Any], shown: Mapping[str, Any], place: str) -> list[str]:
    """The places where what is given is not what is shown; what is left out or null stays."""
    found: list[str] = []
    for name, value in given.items():
        if value is None:
            continue
        there = shown.get(name)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            found += changed_places(value, there, f"{place}{name}.")
        elif value != there and not (value in ("", {}, []) and not there):
            found.append(place + name)
    return found
