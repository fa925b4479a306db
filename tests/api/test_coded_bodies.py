"""Bodies with a content coding: decoded for both apps, bounded, and signed as they were sent."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import httpx
import pytest
import requests

from tests.api.doors import gateway_of, sdk_config, served, signer
from tests.api.doubles import Double, client_of, ours, vllm


@pytest.fixture
def double() -> Double:
    return Double(vllm(), max_body_bytes=2000)


@pytest.fixture
def http(double: Double) -> httpx.AsyncClient:
    return client_of(double)


BODY = json.dumps({"model": "a", "prompt": "x"}).encode()


def zipped(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)


def raw_deflate(body: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(body) + made.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", zipped(BODY)),
        ("GZIP", zipped(BODY)),
        ("x-gzip", zipped(BODY[:9]) + zipped(BODY[9:])),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("identity", BODY),
    ],
    ids=["gzip", "GZIP", "two members", "zlib", "raw deflate", "identity"],
)
async def test_a_coded_body_is_decoded_for_both_apps(
    http: httpx.AsyncClient, coding: str, body: bytes
) -> None:
    headers = {"content-encoding": coding, "content-type": "application/json"}
    answer = await http.post("/v1/completions", content=body, headers=headers)
    assert answer.json()["body"] == {"model": "a", "prompt": "x"}
    assert "content-encoding" not in answer.json()["headers"]
    echo = await http.post("/stacked/echo", content=body, headers=headers)
    assert echo.json() == {"model": "a", "prompt": "x"}


@pytest.mark.parametrize(
    ("coding", "body", "status", "code"),
    [
        ("br", BODY, 415, "EncodingUnsupported"),
        ("gzip, gzip", zipped(zipped(BODY)), 415, "EncodingUnsupported"),
        ("gzip", BODY, 400, "BodyInvalid"),
        ("gzip", zipped(BODY)[:-4], 400, "BodyInvalid"),
        ("gzip", zipped(BODY) + b"more", 400, "BodyInvalid"),
        ("gzip", zipped(b"") * 40, 400, "BodyInvalid"),
        ("deflate", BODY, 400, "BodyInvalid"),
        ("gzip", zipped(b" " * 100_000), 413, "BodyTooLarge"),
        ("gzip", zipped(b" " * 1900) * 2, 413, "BodyTooLarge"),
    ],
    ids=["br", "twice", "none", "cut", "more", "members", "not deflate", "bomb", "two members"],
)
async def test_a_coded_body_that_cannot_be_is_refused(
    http: httpx.AsyncClient, coding: str, body: bytes, status: int, code: str
) -> None:
    assert len(body) < 2000, "what is too large is so after it is decoded"
    answer = await http.post("/predict", content=body, headers={"content-encoding": coding})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    if status == 415:
        assert answer.headers["accept-encoding"] == "gzip, deflate"


def test_a_signature_is_of_the_bytes_as_they_were_sent(tmp_path: Path) -> None:
    alice = sdk_config(tmp_path)
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    with served(gateway_of(ours(), tmp_path)) as url:
        sent = {"data": zipped(b'{"a": 1}'), "headers": headers, "timeout": 30}
        answer = requests.post(f"{url}/stacked/echo", auth=signer(alice), **sent)
        assert (answer.status_code, answer.json()) == (200, {"a": 1})
