"""Bodies: read once within a limit, parsed once, changed only where something is missing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.api.bodies import ClientGone, Cut, read_body
from stacked.errors import BodyInvalid, BodyTooLarge
from stacked.serving.bodies import parse_object, replay, with_fields


def receiving(*messages: dict[str, Any]) -> Any:
    left: Iterator[dict[str, Any]] = iter(messages)

    async def receive() -> dict[str, Any]:
        for message in left:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    return receive


def part(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_body_is_put_together_within_its_limit() -> None:
    receive = receiving(part(b"ab", True), part(b"cd"))
    assert await read_body(receive, 4, None) == b"abcd"
    with pytest.raises(BodyTooLarge):
        await read_body(receiving(part(b"ab", True), part(b"cd")), 3, None)
    with pytest.raises(BodyTooLarge):
        await read_body(receiving(), 3, "4")


async def test_client_that_leaves_before_its_end_is_told_apart() -> None:
    with pytest.raises(ClientGone):
        await read_body(receiving(part(b"a", True), {"type": "http.disconnect"}), 9, None)


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b"nul", b'{"a": NaN}', b'{"a": 1', b"\xff"])
def test_what_is_not_an_object_is_refused(body: bytes) -> None:
    with pytest.raises(BodyInvalid):
        parse_object(body)


json_objects = st.dictionaries(
    st.text(max_size=5), st.one_of(st.none(), st.integers(), st.text(max_size=5)), max_size=4
)


@given(json_objects, st.booleans(), st.text(" \n\t", max_size=3))
def test_fields_are_set_and_the_rest_stays(tree: dict[str, Any], pretty: bool, lead: str) -> None:
    body = (lead + json.dumps(tree, indent=2 if pretty else None)).encode()
    fields = {"model": "sql", "stream": True}
    assert parse_object(with_fields(body, tree, fields)) == {**tree, **fields}
    assert with_fields(body, tree, {}) == body


async def test_cut_tells_the_app_that_its_client_has_left() -> None:
    cut = Cut()
    receive = replay(b"{}", partial(cut.or_message, receiving()))
    assert (await receive())["body"] == b"{}"
    waiting = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    assert not waiting.done()
    cut.ask()
    cut.ask()
    assert (await waiting)["type"] == "http.disconnect"
    assert cut.asked


async def test_client_that_leaves_is_passed_on() -> None:
    gone = receiving({"type": "http.disconnect"})
    receive = replay(b"{}", partial(Cut().or_message, gone))
    await receive()
    assert (await receive())["type"] == "http.disconnect"
