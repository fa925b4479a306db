"""What clients hold against a fleet is found, and what is right is not."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest
from aiohttp import web

from tests.fleet.clients import Answer, Clients, Heard
from tests.fleet.kinds import fingerprint
from tests.waiting import until_async

GROUPS = {1: {"a": "first"}, 4: {"a": "second"}}
DIGESTS = {"first": "sha256:1", "second": "sha256:2"}
RIGHT = Answer("a", "x", fingerprint("second", "x"), "sha256:2", 4, 1, 0.0, 1.0)


def judged(answer: Answer) -> list[str]:
    return Heard([answer]).judge(GROUPS, DIGESTS)


def test_what_is_right_is_not_held_against_anybody() -> None:
    assert judged(RIGHT) == []


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (replace(RIGHT, newest=5), "backwards"),
        (replace(RIGHT, generation=3), "never committed"),
        (replace(RIGHT, digest="sha256:1"), "wrong"),
        (replace(RIGHT, said=fingerprint("first", "x")), "wrong"),
        (replace(RIGHT, generation=1), "wrong"),
    ],
)
def test_each_broken_promise_is_found(answer: Answer, found: str) -> None:
    (said,) = judged(answer)
    assert said.startswith(found)


def test_an_error_that_no_fault_explains_is_found() -> None:
    assert Heard(strange=["404 KeyUnknown"]).judge(GROUPS, DIGESTS) == ["strange: 404 KeyUnknown"]


def test_the_longest_time_without_an_answer() -> None:
    heard = Heard([replace(RIGHT, arrived=at) for at in (9.0, 1.0, 2.0, 20.0)])
    assert heard.longest_gap(0.0, 10.0) == 7.0
    assert heard.longest_gap(2.5, 8.0) == 5.5


class Replica:
    """A server whose answers are of the generations that it is given, one after the other."""

    def __init__(self, *generations: int) -> None:
        self.generations = list(generations)
        self.sent_back: list[str | None] = []

    async def predict(self, request: web.Request) -> web.Response:
        self.sent_back.append(request.headers.get("model-generation"))
        generation = self.generations.pop(0) if self.generations else 0
        if not generation:
            return web.json_response({"code": "NotReady"}, status=503)
        secret = GROUPS[generation]["a"]
        said = fingerprint(secret, (await request.json())["prompt"])
        headers = {"model-generation": str(generation), "model-digest": DIGESTS[secret]}
        return web.json_response({"said": said}, headers=headers)


async def asked(replica: Replica, *, alone: bool) -> Heard:
    """What one client got of all of these answers."""
    app = web.Application()
    app.router.add_post("/predict", replica.predict)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url, heard = f"http://127.0.0.1:{runner.addresses[0][1]}", Heard()
    task = asyncio.create_task(Clients(heard, ["a"], alone=alone).run(url, 1))
    await until_async(lambda: heard.refused)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await runner.cleanup()
    return heard


async def test_a_client_finds_an_answer_of_an_older_generation() -> None:
    heard = await asked(Replica(1, 4, 1), alone=False)
    assert heard.judge(GROUPS, DIGESTS) == ["backwards: a of generation 1 after 4"]
    assert heard.behind == 1
    assert set(heard.refused) == {"503 NotReady"}


async def test_a_client_of_a_session_sends_back_what_it_has_got() -> None:
    replica = Replica(1, 4, 4)
    heard = await asked(replica, alone=True)
    assert heard.judge(GROUPS, DIGESTS) == []
    assert replica.sent_back[:4] == [None, "1", "4", "4"]
