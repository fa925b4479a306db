"""`opc-retry-token` over routes: done once, answered the same, and never for other content."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from stacked.api.control.calls import Route
from stacked.api.errors import handle_errors
from stacked.api.retry_tokens import RetryTokens
from stacked.errors import RecordConflict
from stacked.registry import Registry
from stacked.registry.retry_tokens import RetryTokenRepository

ARTIFACT = "/20190101/models/m/artifact"


@dataclass
class Double:
    """Routes that count what they do, and can be made to fail or to wait."""

    registry: Registry
    done: list[bytes] = field(default_factory=list)
    fail: bool = False
    status: int = 200
    patience: float = 0.0
    may_go: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_go.set()

    def app(self) -> FastAPI:
        router = APIRouter(prefix="/20190101", route_class=Route)

        @router.post("/models")
        @router.post("/modelGroups")
        async def create(request: Request) -> Response:
            self.begun.set()
            body = await request.body()
            await self.may_go.wait()
            if self.fail:
                raise RecordConflict("no")
            self.done.append(body)
            made = {"id": f"m{len(self.done)}"}
            headers = {"etag": f"e{len(self.done)}", "opc-work-request-id": "w"}
            return JSONResponse(made, self.status, headers)

        @router.get("/models")
        async def get() -> Response:
            return Response("got")

        @router.post("/models/{id}/artifact")
        async def upload(id: str, request: Request) -> Response:
            content = hashlib.sha256()
            async for part in request.stream():
                content.update(part)
            self.done.append(content.digest())
            return Response(status_code=204, headers={"etag": "u"})

        app = FastAPI()
        handle_errors(app)
        app.state.retry_tokens = RetryTokens(lambda: self.registry, 100_000, self.patience)
        app.include_router(router)
        return app

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app())
        return httpx.AsyncClient(transport=transport, base_url="http://here")


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Registry(tmp_path / "registry.db") as registry:
        yield Double(registry)


def token(text: str = "t1") -> dict[str, str]:
    return {"opc-retry-token": text}


async def create(http: httpx.AsyncClient, body: Any = None, **headers: str) -> httpx.Response:
    given = {**token(), **{name.replace("_", "-"): text for name, text in headers.items()}}
    return await http.post("/20190101/models", json=body or {"a": 1}, headers=given)


async def test_the_same_call_is_done_once_and_answered_the_same(double: Double) -> None:
    async with double.client() as http:
        first, again = await create(http), await create(http, opc_request_id="another")
    assert len(double.done) == 1
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.json() == {"id": "m1"}
    for name in ("etag", "opc-work-request-id", "content-type", "content-length"):
        assert again.headers[name] == first.headers[name]


async def test_without_a_token_every_call_is_done(double: Double) -> None:
    async with double.client() as http:
        for _ in range(2):
            await http.post("/20190101/models", json={"a": 1})
    assert len(double.done) == 2


async def test_other_content_under_a_token_is_refused(double: Double) -> None:
    async with double.client() as http:
        await create(http)
        answer = await create(http, {"a": 2})
        query = await http.post("/20190101/models?x=1", json={"a": 1}, headers=token())
    for refused in (answer, query):
        assert refused.status_code == 409
        assert refused.json()["code"] == "InvalidatedRetryToken"
        assert "other content" in refused.json()["message"]
    assert len(double.done) == 1


async def test_a_token_counts_for_one_operation(double: Double) -> None:
    async with double.client() as http:
        await create(http)
        other = await http.post("/20190101/modelGroups", json={"a": 1}, headers=token())
        assert other.json() == {"id": "m2"}
        assert (await http.get("/20190101/models", headers=token())).text == "got"


async def test_a_call_that_failed_may_be_made_again(double: Double) -> None:
    async with double.client() as http:
        double.fail = True
        assert (await create(http)).status_code == 409
        double.fail, double.status = False, 503
        assert (await create(http)).status_code == 503
        double.status = 200
        assert (await create(http, {"changed": True})).json() == {"id": "m2"}


async def test_two_calls_at_once_do_the_work_once(double: Double) -> None:
    double.may_go.clear()
    async with double.client() as http:
        calls = [asyncio.create_task(create(http)) for _ in range(5)]
        other = asyncio.create_task(create(http, {"a": 2}))
        await double.begun.wait()
        double.may_go.set()
        answers = await asyncio.gather(*calls)
        refused = await other
    assert len(double.done) == 1
    assert {answer.content for answer in answers} == {b'{"id":"m1"}'}
    assert refused.status_code == 409


async def test_when_the_first_of_two_fails_the_second_does_the_work(double: Double) -> None:
    double.may_go.clear()
    double.fail = True
    async with double.client() as http:
        first, second = asyncio.create_task(create(http)), asyncio.create_task(create(http))
        await double.begun.wait()
        double.may_go.set()
        assert (await first).status_code == 409
        double.fail = False
        assert (await second).status_code in (200, 409)
        assert (await create(http)).json() == {"id": "m1"}


@pytest.mark.parametrize("fails", [False, True])
async def test_a_call_at_another_server_of_a_fleet_is_waited_for(
    double: Double, fails: bool
) -> None:
    double.may_go.clear()
    double.fail = fails
    other = Double(double.registry, patience=60.0)
    async with double.client() as http, other.client() as there:
        first = asyncio.create_task(create(http))
        await double.begun.wait()
        calls = [asyncio.create_task(create(there)) for _ in range(2)]
        done, _ = await asyncio.wait(calls, timeout=0.5)
        assert not done
        double.may_go.set()
        answers = [await first, *await asyncio.gather(*calls)]
        assert [answer.status_code for answer in answers] == [409 if fails else 200, 200, 200]
        assert {answer.content for answer in answers[1:]} == {b'{"id":"m1"}'}
        assert len(double.done) + len(other.done) == 1
        refused = await create(there, {"a": 2})
        assert "other content" in refused.json()["message"]


async def test_a_client_that_gave_up_leaves_its_token_free(double: Double) -> None:
    double.may_go.clear()
    async with double.client() as http:
        call = asyncio.create_task(create(http))
        await double.begun.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        double.may_go.set()
        assert (await create(http)).json() == {"id": "m1"}


async def test_it_is_replayed_after_a_restart(double: Double) -> None:
    async with double.client() as http:
        first = await create(http)
    path = Path(double.registry._database._store._path)
    double.registry.close()
    with Registry(path) as registry:
        later = Double(registry)
        async with later.client() as http:
            again = await create(http)
    assert again.content == first.content
    assert later.done == []


@pytest.mark.parametrize("patience", [0.0, 0.5])
async def test_a_call_that_a_stop_cut_off_is_not_done_twice(
    double: Double, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    double.patience = patience
    async with double.client() as http:
        double.fail = True
        with monkeypatch.context() as patched:
            # As if the process had ended before it could note how the call went.
            patched.setattr(RetryTokenRepository, "forget", lambda *_: None)
            await create(http)
        double.fail = False
        answer = await create(http)
    assert answer.status_code == 409
    assert answer.json()["code"] == "InvalidatedRetryToken"
    assert "cut off" in answer.json()["message"]
    assert double.done == []


@pytest.mark.parametrize("text", ["", " ", "a b", "x" * 65, "\xe9"])
async def test_what_is_no_token_is_refused(double: Double, text: str) -> None:
    async with double.client() as http:
        headers = httpx.Headers([(b"opc-retry-token", text.encode("latin-1"))])
        answer = await http.post("/20190101/models", json={}, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["code"] == "InvalidParameter"
    assert double.done == []


async def test_an_upload_is_known_by_its_content(double: Double) -> None:
    content = b"x" * 300_000  # over what is read as a body

    async with double.client() as http:
        for _ in range(2):
            done = await http.post(ARTIFACT, content=content, headers=token())
            assert (done.status_code, done.headers["etag"], done.content) == (204, "u", b"")
        other = await http.post(ARTIFACT, content=content[:-1] + b"y", headers=token())
    assert double.done == [hashlib.sha256(content).digest()]
    assert other.json()["code"] == "InvalidatedRetryToken"


async def test_a_body_over_the_limit_is_refused(double: Double) -> None:
    async with double.client() as http:
        answer = await create(http, {"a": "x" * 200_000})
    assert answer.status_code == 413
    assert answer.json()["code"] == "PayloadTooLarge"


async def test_no_turn_is_left_behind(double: Double) -> None:
    app = double.app()
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        await asyncio.gather(*(create(http) for _ in range(3)))
    assert app.state.retry_tokens._under_way == {}
