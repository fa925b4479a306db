"""The HTTP client: what it sends, what it reads, and both shapes of error as one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from stacked.client import Client, ClientError, Served, default_url, text_of
from stacked.errors import KeyFileInvalid
from tests.serving import free_port
from tests.wire import Wire, wire


@pytest.fixture
def told() -> Iterator[Wire]:
    with wire() as one:
        yield one


@pytest.fixture
def client(told: Wire) -> Iterator[Client]:
    with Client(told.url) as one:
        yield one


def test_the_key_goes_in_the_header(client: Client, told: Wire) -> None:
    told.answer = {"choices": [{"text": "4"}]}
    assert client.predict("sql", {"prompt": "2+2"}) == told.answer
    assert (told.path, told.key, told.body) == ("/predict", "sql", {"prompt": "2+2"})


def test_a_token_is_sent_as_one(told: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKED_API_KEY", "stk_1")
    with Client(told.url) as client:
        client.predict("sql", {"prompt": "2+2"})
    assert told.headers["authorization"] == "Bearer stk_1"
    monkeypatch.setenv("STACKED_OCI_CONFIG", "somewhere")
    with pytest.raises(KeyFileInvalid, match="set only one"):
        Client(told.url)


def test_without_a_key_none_is_sent(client: Client, told: Wire) -> None:
    client.predict(None, {"prompt": "2+2"})
    assert told.key is None


def test_a_stream_is_its_events_until_it_says_done(client: Client, told: Wire) -> None:
    told.answer = [{"n": 1}, {"n": 2}, "[DONE]", {"n": 3}]
    assert list(client.predict_stream("a", {})) == [{"n": 1}, {"n": 2}]
    assert told.body == {"stream": True}


def test_comments_and_data_of_several_lines_are_read(client: Client, told: Wire) -> None:
    told.answer = b': ping\r\n\r\nevent: x\r\ndata: {"n":\r\ndata:  1}\r\n\r\ndata: [DONE]'
    assert list(client.predict_stream("a", {})) == [{"n": 1}]


def test_a_stream_that_is_cut_is_an_error(client: Client, told: Wire) -> None:
    told.answer = [{"n": 1}]
    events = client.predict_stream("a", {})
    assert next(events) == {"n": 1}
    with pytest.raises(ClientError, match="cut short"):
        next(events)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no such key", "type": "NotFound", "code": "KeyUnknown"}},
        {"code": "KeyUnknown", "message": "no such key"},
    ],
)
def test_both_shapes_of_error_are_one(client: Client, told: Wire, body: dict[str, Any]) -> None:
    told.status, told.answer = 404, body
    with pytest.raises(ClientError, match="no such key") as refused:
        client.predict("x", {})
    assert (refused.value.code, refused.value.status) == ("KeyUnknown", 404)
    with pytest.raises(ClientError, match="no such key"):
        next(client.predict_stream("x", {}))


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "it died", "code": "EngineDead"}},
        {"code": "EngineDead", "message": "it died"},
    ],
)
def test_an_error_within_a_stream_is_raised(
    client: Client, told: Wire, body: dict[str, Any]
) -> None:
    told.answer = [{"n": 1}, body]
    events = client.predict_stream("a", {})
    assert next(events) == {"n": 1}
    with pytest.raises(ClientError, match="it died") as refused:
        next(events)
    assert refused.value.code == "EngineDead"


def test_an_error_of_something_in_between_is_told(client: Client, told: Wire) -> None:
    told.status, told.answer = 502, b"<html>Bad Gateway</html>"
    with pytest.raises(ClientError, match="HTTP 502") as refused:
        client.models()
    assert refused.value.status == 502


def test_a_good_answer_that_is_not_json_is_told(client: Client, told: Wire) -> None:
    told.answer = b"<html>Hello</html>"
    with pytest.raises(ClientError, match="does not answer as Stacked does"):
        client.models()


def test_no_server_says_how_to_start_one() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url) as client, pytest.raises(ClientError) as refused:
        client.models()
    assert str(refused.value).startswith(f"no server at {url}; start one with: stacked serve")
    assert refused.value.code == "NoServer"


def test_an_address_that_is_none_is_refused() -> None:
    with Client("http://127.0.0.1:port") as client, pytest.raises(ClientError):
        client.models()


def test_the_address_may_leave_out_the_scheme(told: Wire) -> None:
    told.answer = {"data": []}
    with Client(told.url.removeprefix("http://") + "/") as client:
        assert client.models() == []


def test_the_default_address_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("STACKED_URL", raising=False)
    assert default_url() == "http://127.0.0.1:8080"
    monkeypatch.setenv("STACKED_URL", "http://gpu:1")
    assert default_url() == "http://gpu:1"


def test_models_are_listed_with_what_the_server_says_of_them(client: Client, told: Wire) -> None:
    told.answer = {
        "data": [
            {"id": "sql", "root": "sha256:ab", "model_id": "ocid1.x", "rank": 8, "state": "live"},
            {"id": "base", "root": "smollm2"},
        ]
    }
    assert client.models() == [
        Served("sql", "ocid1.x", "sha256:ab", 8, "live"),
        Served("base", "", "", None, ""),
    ]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"choices": [{"text": "a"}]}, "a"),
        ({"choices": [{"message": {"content": "b"}}]}, "b"),
        ({"choices": [{"delta": {"content": "c"}}]}, "c"),
        ({"choices": [{"delta": {}}]}, ""),
        ({"choices": [{"message": {"content": None}}]}, ""),
        ({"choices": []}, ""),
        ({}, ""),
    ],
)
def test_the_words_of_an_answer(answer: dict[str, Any], text: str) -> None:
    assert text_of(answer) == text
