"""Request ids: on every answer, before every log line of the request, and never a way in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextvars import copy_context
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
from fastapi import FastAPI

from stacked.api import request_ids
from stacked.api.gateway import Gateway
from stacked.api.routes import create_routes
from stacked.config import BaseConfig, Config
from stacked.errors import NotReady
from stacked.logs import JsonLines, TextLines
from stacked.service import Service

logger = logging.getLogger("stacked.test")


@pytest.fixture
def lines() -> Iterator[None]:
    """Log records with ids for one test."""
    before = logging.getLogRecordFactory()
    request_ids.in_log_lines()
    request_ids.in_log_lines()
    yield
    logging.setLogRecordFactory(before)


@pytest.fixture
def http() -> httpx.AsyncClient:
    """Our routes, and two that log and fail, behind the gateway; nothing is served."""
    config = Config(base=BaseConfig(model="tiny"))
    service = cast(Service, SimpleNamespace(config=config))
    app = create_routes(service)

    @app.get("/20190101/broken")
    async def broken() -> None:
        raise RuntimeError("a secret of ours")

    @app.get("/stacked/not-ready")
    async def not_ready() -> None:
        raise NotReady("starting")

    @app.get("/stacked/logs/{name}")
    async def logs(name: str) -> None:
        logger.warning("one %s of %d%%", name, 5)
        await asyncio.gather(asyncio.to_thread(logger.warning, "two"), later())

    async def later() -> None:
        await asyncio.sleep(0)
        logger.warning("100%")

    return client_of(service, app)


def client_of(service: Service, app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=Gateway(service, app), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://here")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/health", 500, "InternalServerError"),
        ("GET", "/20190101/nothing", 404, "NotAuthorizedOrNotFound"),
        ("GET", "//20190101/nothing", 404, "NotAuthorizedOrNotFound"),
        ("GET", "/20190101", 404, "NotAuthorizedOrNotFound"),
        ("PATCH", "/20190101/models", 405, "MethodNotAllowed"),
        ("GET", "/20190101/broken", 500, "InternalServerError"),
        ("GET", "/201901010/nothing", 404, "NotFound"),
        ("GET", "/nowhere", 404, "NotFound"),
        ("PUT", "/health", 405, "MethodNotAllowed"),
        ("GET", "/stacked/not-ready", 503, "NotReady"),
        ("POST", "/predict", 500, "InternalServerError"),
    ],
)
async def test_every_answer_has_the_id_and_ocis_shape(
    http: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await http.request(method, f"http://here{path}", headers={"opc-request-id": "mine"})
    assert answer.status_code == status
    tree = answer.json()
    assert (set(tree), tree["code"]) == ({"code", "message"}, code)
    assert "secret" not in answer.text
    assert answer.headers.get_list("opc-request-id") == ["mine"]
    if status == 405:
        assert answer.headers["allow"]


async def test_an_error_of_a_head_request_has_the_id(http: httpx.AsyncClient) -> None:
    answer = await http.head("/20190101/nothing", headers={"opc-request-id": "mine"})
    assert answer.status_code == 404
    assert answer.headers["opc-request-id"] == "mine"


@pytest.mark.parametrize("given", ["", " ", "a b", "x" * 257, "\xe9", "a\tb", "\x7f", "\x00"])
async def test_an_id_that_is_unfit_is_replaced(http: httpx.AsyncClient, given: str) -> None:
    headers = httpx.Headers([(b"opc-request-id", given.encode("latin-1"))])
    made = (await http.get("/nowhere", headers=headers)).headers["opc-request-id"]
    assert made.isalnum()
    assert len(made) == 32


@pytest.mark.parametrize("given", ["a\r\nset-cookie: b=1", "a\nb", "a\x0bb", "a\x85b"])
def test_no_id_can_begin_another_line(given: str) -> None:
    assert copy_context().run(request_ids.begin, given).isalnum()


async def test_each_line_of_a_request_has_its_id(
    http: httpx.AsyncClient, lines: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="stacked.test"):
        await asyncio.gather(
            *(http.get(f"/stacked/logs/{n}", headers={"opc-request-id": n}) for n in ("%s", "B"))
        )
        logger.warning("of nobody")
    said = sorted(record.getMessage() for record in caplog.records if record.name == "stacked.test")
    of_first = ["[%s] one %s of 5%", "[%s] two", "[%s] 100%"]
    of_second = ["[B] one B of 5%", "[B] two", "[B] 100%"]
    assert said == sorted([*of_first, *of_second, "of nobody"])


async def test_a_fault_of_ours_is_logged_under_the_id(
    http: httpx.AsyncClient, lines: None, caplog: pytest.LogCaptureFixture
) -> None:
    await http.post("/predict", json={}, headers={"opc-request-id": "mine"})
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage().startswith("[mine] POST /predict failed")


def test_outside_a_request_there_is_none() -> None:
    assert request_ids.current() == ""


PROMPT = "zqprompt"


def fail(prompt: str) -> None:
    try:
        raise KeyError(prompt)
    except KeyError as error:
        raise ValueError(f"cannot read {prompt}") from error


def log_all(name: str) -> None:
    """What libraries do with a prompt that they cannot handle."""
    library = logging.getLogger(name)
    library.warning("rejected %s after %d ms, %.1f", PROMPT, 3, 0.5)
    library.warning(f"rejected: {PROMPT}")
    library.warning("rejected %(it)s", {"it": PROMPT})
    try:
        fail(PROMPT)
    except ValueError:
        library.exception("failed")


def written(caplog: pytest.LogCaptureFixture, form: logging.Formatter) -> str:
    return "\n".join(map(form.format, caplog.records))


@pytest.mark.parametrize("form", [TextLines(), JsonLines(), logging.Formatter()])
def test_what_a_request_to_a_model_holds_is_not_logged(
    lines: None, caplog: pytest.LogCaptureFixture, form: logging.Formatter
) -> None:
    def run() -> None:
        request_ids.begin("mine")
        request_ids.hold_content()
        log_all("vllm.test")

    caplog.set_level(logging.WARNING, "vllm.test")  # whatever imported vLLM before
    copy_context().run(run)
    said = written(caplog, form)
    assert PROMPT not in said
    assert "rejected … after 3 ms, 0.5" in written(caplog, TextLines())
    assert "in fail" in said, "where it was raised"
    assert said.index("ValueError") < said.index("KeyError")


def test_other_requests_and_what_no_request_began_are_logged_whole(
    lines: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "vllm.test")
    copy_context().run(log_all, "vllm.test")
    assert written(caplog, TextLines()).count(PROMPT) == 5
