"""A request's body: parsed once, and passed on unchanged where possible."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from stacked.errors import BodyInvalid
from stacked.serving import Message, Receive


def parse_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises BodyInvalid with the location of the fault."""
    try:
        tree = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BodyInvalid(f"the body is not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise BodyInvalid('the body must be a JSON object, such as {"prompt": "…"}')
    return tree


def with_fields(body: bytes, tree: Mapping[str, Any], fields: Mapping[str, Any]) -> bytes:
    """The body with `fields` set. What is absent is spliced in, so that the rest stays as sent."""
    wanted = {name: value for name, value in fields.items() if tree.get(name) != value}
    if not wanted:
        return body
    if any(name in tree for name in wanted):
        return json.dumps({**tree, **wanted}, ensure_ascii=False).encode()
    head = json.dumps(wanted, ensure_ascii=False).encode()[1:-1]
    start = body.index(b"{") + 1
    return b"".join((body[:start], head, b"," if tree else b"", body[start:]))


def replay(body: bytes, then: Receive) -> Receive:
    """A `receive` that returns a body that was read, and then what `then` returns."""
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            return await then()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
