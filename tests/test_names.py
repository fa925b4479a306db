"""The unit of a request in an experiment: where each kind of it stands."""

from __future__ import annotations

from typing import Any

import pytest

from stacked.callers import ANYONE, NOBODY, Caller, called_by
from stacked.serving.names import unit_of


def scope(*values: bytes, caller: Caller = ANYONE) -> dict[str, Any]:
    return {"headers": [(b"Experiment-Unit", value) for value in values], **called_by(caller)}


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        ((), None),
        ((b"",), None),
        ((b"  ",), None),
        ((b" u1 ",), "u1"),
        ((b"u1", b"u2"), "u1"),
        ("Zoë".encode(), "Zoë"),
        (b"Zo%C3%AB", "Zoë"),
        (b"Zo\xeb", "Zoë"),
    ],
)
def test_the_header_is_read_as_keys_are(values: Any, unit: str | None) -> None:
    sent = values if isinstance(values, tuple) else (values,)
    assert unit_of("header", scope(*sent), {"user": "u9"}) == unit


@pytest.mark.parametrize(
    ("tree", "unit"),
    [
        ({"user": "u1", "safety_identifier": "u2"}, "u1"),
        ({"safety_identifier": "u2"}, "u2"),
        ({"metadata": {"user_id": "u3"}}, "u3"),
        ({"user": ""}, None),
        ({"user": 7}, None),
        ({"user": None, "metadata": "text"}, None),
        ({}, None),
    ],
)
def test_the_user_of_a_body_is_openais_or_anthropics(tree: Any, unit: str | None) -> None:
    assert unit_of("user", scope(b"u9"), tree) == unit


def test_a_credential_is_a_unit_and_nobody_is_none() -> None:
    user = Caller("ada", user="ocid1.user.oc1..ada")
    assert unit_of("credential", scope(caller=user), {}) == user.id
    assert unit_of("credential", scope(caller=Caller("app")), {}) == "app"
    assert unit_of("credential", scope(caller=ANYONE), {}) is None
    assert unit_of("credential", scope(caller=NOBODY), {}) is None
