"""What a credential that is held to some keys can learn of the others: nothing.

A real routing table and live group behind the real gateway; what vLLM does is not asked.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from stacked.api.gate import open_gate
from stacked.api.gateway import Gateway
from stacked.api.routes import create_routes
from stacked.config import AuthConfig
from stacked.core import model_id_of
from stacked.groups.leases import Lease
from stacked.groups.routing import Routing
from stacked.keys import Rights, create
from stacked.live import Live
from stacked.service import Service
from stacked.serving.door import Door
from stacked.serving.vllm import VllmServing
from tests.api.doors import config_of
from tests.api.doubles import vllm
from tests.groups.test_routing import BASE, adapter, member
from tests.test_live import FakeEngine

OWN, OTHER, GONE = member("own", 1), member("other", 2), member("gone", 3)
ABSENT = adapter(9)
# What is there and what never was: the same length, because errors repeat a key that was sent.
PAIRS = [
    ("other", "otter"),
    ("gone", "gong"),
    ("base", "bass"),
    (OTHER.model_id, model_id_of(ABSENT.digest)),
    (GONE.model_id, model_id_of(ABSENT.digest)),
    (BASE.model_id, f"{BASE.model_id[:-1]}x"),
]


class Card(SimpleNamespace):
    def model_dump(self) -> dict[str, Any]:
        return dict(vars(self))


class Held:
    """A service whose group has `own` and `other`, and `gone`, which is draining."""

    def __init__(self, live: Live[Any]) -> None:
        self.config = config_of(auth=AuthConfig(bearer=True))
        self._server = self.config.server
        self.app, self.vllm = vllm(), self
        self.app.state.openai_serving_models = self
        self.live, self.door = live, Door(self.app)
        self.admit = partial(VllmServing.admit, cast(VllmServing, self))

    async def opened(self, after: int) -> None: ...

    def died(self, end: Callable[..., object]) -> None:
        raise AssertionError("the engine of a double does not die")

    @property
    def routing(self) -> Routing[Any]:
        return self.live.routing

    async def show_available_models(self) -> Any:
        cards = [
            Card(id=route.label, root="r", parent=BASE.key if route.member else None)
            for route in self.routing
        ]
        return SimpleNamespace(data=cards)


@contextlib.asynccontextmanager
async def serving_held() -> AsyncIterator[Held]:
    engine = FakeEngine()
    members = (OWN, OTHER, GONE)
    handles = {each.content.digest: engine.handle(each.content.digest) for each in members}
    live: Live[Any] = Live(engine, Routing.of(BASE, members, handles), drain_seconds=5)
    lease: Lease = live.admit({"key": "gone"}).lease
    live.routing, _ = live.routing.without("gone")
    yield Held(live)
    lease.release()


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    async with serving_held() as one:
        yield one


def client_of(held: Held, data_dir: Path, *keys: str) -> httpx.AsyncClient:
    """Whoever may use these keys; without any, all."""
    rights = Rights(keys=frozenset(keys) or None)
    token = create(data_dir, "caller", rights, force=True)
    service = cast(Service, held)
    door = Gateway(service, create_routes(service), open_gate(held.config, data_dir))
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=door),
        base_url="http://here",
        headers={"authorization": f"Bearer {token}", "opc-request-id": "1"},
    )


def requests_of(name: str) -> Iterator[httpx.Request]:
    """Every way in which a request can name a model, alone and beside a model of its own."""
    places: list[tuple[str, dict[str, str], dict[str, Any]]] = [
        (f"/models/{name}/predict", {}, {}),
        (f"/model/{name}/predictWithResponseStream", {}, {}),
        ("/predict", {"model-key": name}, {}),
        ("/predict", {"model-ocid": name}, {}),
        ("/v1/completions", {"x-amzn-sagemaker-adapter-identifier": name}, {}),
        ("/v1/completions", {"model-key": "own"}, {"model": name}),
        ("/v1/completions", {"model-key": name}, {"model": "own"}),
        ("/models/own/predict", {}, {"model": name}),
        ("/v1/chat/completions", {}, {"model": name, "stream": True}),
        ("/tokenize", {}, {"model": name}),
        ("/generative_scoring", {}, {"chat_request": {"model": name}}),
        ("/predict/v1/completions", {}, {"model": name}),
    ]
    for path, headers, body in places:
        content = json.dumps({"prompt": "x", **body}).encode()
        yield httpx.Request("POST", f"http://here{path}", headers=headers, content=content)
    for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        for path in (f"/v1/models/{name}", f"/models/{name}", f"/models/{name}/health"):
            yield httpx.Request(method, f"http://here{path}")
    yield httpx.Request("GET", f"http://here/v1/models?model={name}")


async def seen(client: httpx.AsyncClient, request: httpx.Request, name: str) -> Any:
    """All that comes back, without the name that was sent."""
    request.headers.update(client.headers)
    answer = await client.send(request)
    headers = sorted(
        (key, value) for key, value in answer.headers.items() if key != "content-length"
    )
    return answer.status_code, headers, answer.content.replace(name.encode(), b"NAME")


@pytest.mark.parametrize(("there", "never"), PAIRS)
async def test_what_is_another_s_and_what_never_was_get_the_same_bytes(
    held: Held, tmp_path: Path, there: str, never: str
) -> None:
    async with client_of(held, tmp_path, "own") as client:
        for one, other in zip(requests_of(there), requests_of(never), strict=True):
            shown = f"{one.method} {one.url} {dict(one.headers)} {one.content!r}"
            assert await seen(client, one, there) == await seen(client, other, never), shown


@pytest.mark.parametrize(("there", "never"), PAIRS)
async def test_who_may_use_all_is_told_more(
    held: Held, tmp_path: Path, there: str, never: str
) -> None:
    """The comparison above can fail: for this caller it does."""
    async with client_of(held, tmp_path) as client:
        pairs = zip(requests_of(there), requests_of(never), strict=True)
        same = [
            await seen(client, one, there) == await seen(client, other, never)
            for one, other in pairs
        ]
    assert not all(same)


async def test_models_are_listed_as_if_there_were_no_others(held: Held, tmp_path: Path) -> None:
    async def listed(*keys: str) -> dict[str, str | None]:
        async with client_of(held, tmp_path, *keys) as client:
            rows = (await client.get("/v1/models")).json()["data"]
            for row in rows:
                assert (await client.get(f"/v1/models/{row['id']}")).json() == row
            return {row["id"]: row["parent"] for row in rows}

    assert await listed() == {"base": None, "own": "base", "other": "base"}
    assert await listed("own") == {"own": None}
    assert await listed("own", "base") == {"base": None, "own": "base"}
    assert await listed(OTHER.model_id, BASE.model_id) == {"base": None, "other": "base"}
    assert await listed("gone", "never") == {}


async def test_the_base_is_for_those_who_may_use_it(held: Held, tmp_path: Path) -> None:
    async def status(*keys: str) -> int:
        async with client_of(held, tmp_path, *keys) as client:
            return (await client.post("/v1/completions", json={"prompt": "x"})).status_code

    assert await status("own") == 400
    assert await status("base") == await status(BASE.model_id) == await status() == 200


async def test_one_s_own_models_answer_by_key_and_by_id(held: Held, tmp_path: Path) -> None:
    async with client_of(held, tmp_path, "own") as client:
        for name in ("own", OWN.model_id):
            answer = await client.post("/v1/completions", json={"model": name, "prompt": "x"})
            assert answer.headers["model-key"] == "own"
    async with client_of(held, tmp_path, "gone") as client:
        answer = await client.post("/v1/completions", json={"model": "gone"})
        assert answer.json()["error"]["code"] == "KeyRemoved"  # to whom it was known
