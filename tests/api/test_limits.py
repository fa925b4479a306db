"""The gateway's counts: what is refused, in which shape, and that all of it is given back."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from stacked.api.gate import Gate
from stacked.api.gateway import Gateway
from stacked.callers import Allowance, Caller
from stacked.config import LimitsConfig
from stacked.engine.openai import selected
from stacked.service import Service
from tests.api.doubles import ByName, Double, ours, vllm

CALLERS = {
    "bob": Caller("bob", allowance=Allowance(concurrency=2)),
    "eve": Caller("eve"),
    "ann": Caller("ann", allowance=Allowance(requests_per_minute=2, tokens_per_minute=1000)),
}
PROMPT = {"model": "a", "prompt": "x"}
BOB, EVE, ANN = ({"who": name} for name in ("bob", "eve", "ann"))


class Engine:
    """An app whose answers wait until they are let go; each takes 400 tokens."""

    routes = vllm().routes

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running = 0
        self.arrived = asyncio.Condition()
        self.stream = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await JSONResponse({"data": []})(scope, receive, send)
            return
        async with self.arrived:
            self.running += 1
            self.arrived.notify_all()
        if self.stream:
            await StreamingResponse(self._tokens(), media_type="text/event-stream")(
                scope, receive, send
            )
            return
        await receive()  # the body
        gone, go = asyncio.ensure_future(receive()), asyncio.ensure_future(self.go.wait())
        await asyncio.wait({gone, go}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        go.cancel()
        selection = selected.get()
        assert selection is not None
        assert selection.report is not None
        selection.report.count(300, 100, False)
        await JSONResponse({"done": True})(scope, receive, send)

    async def _tokens(self) -> AsyncIterator[bytes]:
        while True:
            yield b"data: 1\n\n"
            await asyncio.sleep(0.01)

    async def have(self, running: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: self.running >= running)


class Rig:
    """A gateway with limits, its engine, and its clients."""

    def __init__(self, server: dict[str, Any], **limits: Any) -> None:
        self.engine = Engine()
        service = cast(Service, Double(self.engine, limits=LimitsConfig(**limits), **server))
        self.gateway = Gateway(service, ours(), cast(Gate, ByName(CALLERS)))
        transport = httpx.ASGITransport(app=self.gateway)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://here")

    def post(self, who: dict[str, str], path: str = "/v1/completions", **body: Any) -> Any:
        return self.http.post(path, json=PROMPT | body, headers=who)

    @contextlib.asynccontextmanager
    async def holding(self, who: dict[str, str], count: int, **body: Any) -> AsyncIterator[None]:
        """So many open requests of one caller, all of which are answered in the end."""
        before = self.engine.running
        self.engine.go.clear()
        open = [asyncio.create_task(self.post(who, **body)) for _ in range(count)]
        await self.engine.have(before + count)
        yield
        self.engine.go.set()
        assert [answer.status_code for answer in await asyncio.gather(*open)] == [200] * count

    def taken(self) -> list[Any]:
        limits = self.gateway._limits
        places = (limits._requests, limits._of_callers, limits._of_keys, limits.bodies)
        return [(place._total, dict(place._taken)) for place in places]


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Rig]]:
    """Makes rigs, and checks at the end that nothing of them is still taken."""
    rigs: list[Rig] = []

    def made(server: dict[str, Any] | None = None, **limits: Any) -> Rig:
        rigs.append(Rig(server or {}, **limits))
        return rigs[-1]

    yield made
    for rig in rigs:
        assert rig.taken() == [(0, {})] * 4


def openai_error(answer: httpx.Response, limit: str) -> None:
    assert answer.status_code == 429, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert error["param"] == limit
    assert limit in error["message"]
    assert int(answer.headers["retry-after"]) >= 1


Make = Callable[..., Rig]


# -- in flight ----------------------------------------------------------------------------------


async def test_a_credentials_concurrency_is_its_own(make: Make) -> None:
    rig = make()
    async with rig.holding(BOB, 2):
        openai_error(await rig.post(BOB), "concurrency")
        plain = await rig.post(BOB, "/predict")
        assert plain.status_code == 429
        assert plain.json().keys() == {"code", "message"}
        assert plain.json()["code"] == "TooManyRequests"
        assert "(concurrency)" in plain.json()["message"]
        assert plain.headers["retry-after"] == "1"
        models = await rig.http.get("/v1/models", headers=BOB)
        assert models.status_code == 200, "only requests to models are counted"
        async with rig.holding(EVE, 1):
            pass
    assert (await rig.post(BOB)).status_code == 200


async def test_without_a_concurrency_a_credential_has_a_share(make: Make) -> None:
    rig = make(requests=6, share=0.5)
    async with rig.holding(EVE, 3):
        openai_error(await rig.post(EVE), "requests_per_caller")
        async with rig.holding(BOB, 2), rig.holding(ANN, 1):
            openai_error(await rig.post(EVE), "requests")
            openai_error(await rig.post(ANN), "requests")


async def test_a_key_has_a_share_of_the_sequences_and_others_go_on(make: Make) -> None:
    rig = make(sequences=8, share=0.5)
    async with rig.holding(BOB, 1, n=4):
        openai_error(await rig.post(EVE), "sequences_per_key")
        async with rig.holding(EVE, 2, model="base", prompt=["x", "y"]):
            openai_error(await rig.post(EVE, model="größe"), "sequences")


async def test_a_caller_has_a_share_of_the_sequences(make: Make) -> None:
    rig = make(sequences=8, share=0.5)
    async with rig.holding(EVE, 2, n=2):
        openai_error(await rig.post(EVE, model="base"), "sequences_per_caller")


async def test_places_are_given_back_however_a_request_ends(make: Make) -> None:
    rig = make(requests=2, share=1)
    for _ in range(10):
        assert (await rig.post(EVE, model="nobody")).status_code == 404
        assert (await rig.post(EVE, n=1000)).status_code == 400
        assert (await rig.http.post("/predict", content=b"{", headers=EVE)).status_code == 400
        left = asyncio.create_task(rig.post(EVE))
        await rig.engine.have(rig.engine.running + 1)
        left.cancel()
        await asyncio.wait({left})
    rig.engine.go.set()
    assert (await rig.post(EVE)).status_code == 200


# -- rates --------------------------------------------------------------------------------------


async def test_every_answer_of_a_limited_caller_shows_its_rates(make: Make) -> None:
    rig = make()
    rig.engine.go.set()
    listed = await rig.http.get("/v1/models", headers=ANN)
    assert listed.headers["x-ratelimit-remaining-requests"] == "2"
    answer = await rig.post(ANN)
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
    missing = await rig.post(ANN, "/predict", model="nobody")
    assert missing.status_code == 404
    assert missing.headers["x-ratelimit-remaining-requests"] == "0"
    assert missing.headers["x-ratelimit-remaining-tokens"] == "600"
    refused = await rig.post(ANN)
    openai_error(refused, "requests_per_minute")
    assert int(refused.headers["retry-after"]) > 1
    assert refused.headers["x-ratelimit-reset-requests"].endswith("s")
    assert "x-ratelimit-limit-requests" not in (await rig.post(EVE)).headers


async def test_tokens_of_prompts_and_answers_are_charged(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = Caller("ann", allowance=Allowance(tokens_per_minute=1000))
    monkeypatch.setitem(CALLERS, "ann", free)
    rig = make()
    rig.engine.go.set()
    answers = [await rig.post(ANN) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    openai_error(answers[-1], "tokens_per_minute")


# -- bodies -------------------------------------------------------------------------------------


async def exchange(
    rig: Rig, parts: list[bytes], headers: dict[str, str], path: str = "/predict"
) -> dict[str, Any]:
    """Send parts of a body, and then nothing more; the status and body that come back."""
    ready = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    seen: list[Message] = []

    async def receive() -> Message:
        if ready:
            return ready.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        seen.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": raw, "query_string": b""}
    await rig.gateway(scope, receive, send)
    shown = Headers(raw=seen[0]["headers"])
    return {"status": seen[0]["status"], "headers": shown} | json.loads(seen[1]["body"])


@pytest.mark.parametrize(
    ("limits", "name"),
    [({"idle_seconds": 0.05}, "idle_seconds"), ({"body_seconds": 0.05}, "body_seconds")],
)
@pytest.mark.parametrize("path", ["/predict", "/stacked/echo"])
async def test_a_body_that_does_not_arrive_is_408(
    make: Make, limits: dict[str, float], name: str, path: str
) -> None:
    answer = await exchange(make(**limits), [b"{", b'"prompt":'], EVE, path)
    assert (answer["status"], answer["code"]) == (408, "BodyTooSlow")
    assert name in answer["message"]
    assert answer["headers"]["connection"] == "close"


async def test_bodies_of_all_requests_are_bounded(make: Make) -> None:
    rig = make({"max_body_bytes": 2000}, bodies_bytes=4000, share=0.5)
    async with rig.holding(EVE, 1, prompt="x" * 1500):
        refused = await rig.post(EVE, prompt="x" * 1500)
        openai_error(refused, "bodies_bytes_per_caller")
        async with rig.holding(BOB, 1, prompt="x" * 1500):
            openai_error(await rig.post(ANN, prompt="x" * 1500), "bodies_bytes")
    assert (await rig.post(EVE, prompt="x" * 1500)).status_code == 200


async def test_what_a_coded_body_becomes_is_counted_too(make: Make) -> None:
    rig = make({"max_body_bytes": 2000}, bodies_bytes=4000, share=0.5)
    body = gzip.compress(json.dumps(PROMPT | {"prompt": "x" * 1500}).encode())
    assert len(body) < 100
    async with rig.holding(EVE, 1, prompt="x" * 1500):
        coded = EVE | {"content-encoding": "gzip"}
        answer = await rig.http.post("/v1/completions", content=body, headers=coded)
        openai_error(answer, "bodies_bytes_per_caller")
    answer = await rig.http.post("/v1/completions", content=body, headers=coded)
    assert answer.status_code == 200


async def test_an_upload_is_not_held_and_may_be_longer(make: Make) -> None:
    rig = make({"max_body_bytes": 2000}, bodies_bytes=3000, body_seconds=3600)
    path = "/20190101/models/ocid1.x/artifact"
    answer = await rig.http.post(path, content=b"x" * 100_000, headers=EVE)
    assert answer.status_code == 404, "which is the double's answer"


# -- time ---------------------------------------------------------------------------------------


async def test_a_request_that_takes_too_long_is_ended(make: Make) -> None:
    rig = make(total_seconds=0.05)
    answer = await rig.post(EVE)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "TimeExceeded"
    assert answer.json()["error"]["param"] == "total_seconds"
    plain = await rig.post(EVE, "/predict")
    assert (plain.status_code, plain.json()["code"]) == (504, "TimeExceeded")


async def test_a_stream_that_takes_too_long_ends_with_the_error(make: Make) -> None:
    rig = make(total_seconds=0.05)
    rig.engine.stream = True
    answer = await rig.post(EVE)
    assert answer.status_code == 200
    *_, last = answer.text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "TimeExceeded"


# -- one request --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/v1/completions/render",
        "/tokenize",
        "/invocations",
        "/rerank",
        "/inference/v1/generate",
        "/predict",
        "/predict/v1/completions",
        "/models/a/predict",
    ],
)
async def test_parameters_are_bounded_on_every_surface(make: Make, path: str) -> None:
    rig = make(n=2)
    answer = await rig.post(EVE, path, n=3)
    assert answer.status_code == 400
    assert rig.engine.running == 0
    tree = answer.json()
    error = tree.get("error", tree)
    assert error["code"] == "ParameterOverLimit"
    assert error.get("param", "n") == "n"
    assert "(n)" in error["message"]


async def test_an_answer_without_a_length_gets_the_longest_that_is_allowed(make: Make) -> None:
    double = Double(vllm(), limits=LimitsConfig(max_tokens=50))
    gateway = Gateway(cast(Service, double), ours())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=gateway), base_url="http://here"
    ) as http:
        for sent, wanted in (({}, 50), ({"max_tokens": 7}, 7)):
            answer = await http.post("/v1/completions", json=PROMPT | sent)
            assert answer.json()["body"]["max_tokens"] == wanted
