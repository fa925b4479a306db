"""What two readers of one connection could read differently has one meaning here, or is refused.

Each shape is sent as it is to the real HTTP server; there is a double behind the gateway. The
number of answers is what counts: a second one would be to a request that was smuggled in.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import cast
from urllib.parse import urlsplit

import pytest

from stacked.api.gateway import Gateway
from stacked.api.protocol import bounded
from stacked.config import LimitsConfig
from stacked.service import Service
from tests.api.doors import served
from tests.api.doubles import Double, ours, vllm

BODY = b'{"prompt": "x"}'
LENGTH = b"content-length: %d\r\n" % len(BODY)
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
LAST = b"connection: close\r\n\r\n"
NEXT = b"GET /health HTTP/1.1\r\nhost: x\r\n" + LAST
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n" + LAST
CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)
END = b"0\r\n\r\n"


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    double = Double(vllm(), max_body_bytes=10_000)
    app = Gateway(cast(Service, double), ours())
    with served(app, http=bounded(LimitsConfig(), 4096)) as url:
        parts = urlsplit(url)
        yield str(parts.hostname), int(parts.port or 0)


def answers(address: tuple[str, int], data: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer until the server closes the connection."""
    received = b""
    with socket.create_connection(address, timeout=60) as sock:
        try:
            sock.sendall(data)
            while part := sock.recv(1 << 16):
                received += part
        except ConnectionError:  # it was closed with something still unread
            pass
    found = []
    for answer in re.split(rb"(?=HTTP/1\.1 \d)", received)[1:]:
        head, _, body = answer.partition(b"\r\n\r\n")
        found.append((int(head.split()[1]), body))
    return found


def statuses(address: tuple[str, int], data: bytes) -> list[int]:
    return [status for status, _ in answers(address, data)]


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: chunked, gzip\r\n",
        b"transfer-encoding : chunked\r\n",
        LENGTH + LENGTH,
        LENGTH + b"content-length: 0\r\n",
        b"content-length: 15, 15\r\n",
        b"content-length: +15\r\n",
        b"content-length: -1\r\n",
        b"content-length: 0x0f\r\n",
        b"content-length: 1 5\r\n",
        b"content-length: \xb2\r\n",
        b"content-length: \xd9\xa3\r\n",
        b"content-length: 99999999999999999999999\r\n",
        b"x-a: b\rtransfer-encoding: chunked\r\n" + LENGTH,
        b"x-a: b\0c\r\n" + LENGTH,
        b"x-\0a: b\r\n" + LENGTH,
        b" content-length: 15\r\n",
        b": x\r\n" + LENGTH,
        b"x a: b\r\n" + LENGTH,
        b"x-a: b\r\n c: d\r\n" + LENGTH,  # folded, as HTTP/1.0 had it
        b"content-length:\r\n 15\r\n",
    ],
)
def test_a_length_that_can_be_read_in_two_ways_is_refused(
    address: tuple[str, int], headers: bytes
) -> None:
    assert statuses(address, HEAD + headers + b"\r\n" + END + NEXT) == [400]


@pytest.mark.parametrize(
    "body",
    [
        b"-1\r\n\r\n" + END,
        b"fffffffffffffffff\r\n\r\n" + END,
        b"0xf\r\n" + BODY + b"\r\n" + END,
        b"%x\r\n%sXX%s" % (len(BODY), BODY, END),
        b"%x;a\n%s\r\n%s" % (len(BODY), BODY, END),
        b"%x\n%s\n0\n\n" % (len(BODY), BODY),
        b" f\r\n" + BODY + b"\r\n" + END,
        b"\r\n" + CHUNK + END,
        CHUNK + b"0\r\nmodel-key: nope\r\ncontent-length: 4\r\n\r\n",  # trailers
    ],
)
def test_a_chunk_that_can_be_read_in_two_ways_is_refused(
    address: tuple[str, int], body: bytes
) -> None:
    assert statuses(address, CHUNKED + body + NEXT) == [400]


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT x:80 HTTP/1.1",
        b"GET x:80 HTTP/1.1",
        b"GET health HTTP/1.1",
        b"GET \\health HTTP/1.1",
        b"GET /health%0d%0ax: y HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET /health\xff HTTP/1.1",
        b"get /health HTTP/1.1",
        b"GET /health HTTP/1.9",
        b"GET /health HTTP/1.1 ",
        b"PRI * HTTP/2.0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"A" * 100_000,
    ],
)
def test_a_line_that_is_no_request_is_refused(address: tuple[str, int], line: bytes) -> None:
    assert statuses(address, line + b"\r\nhost: x\r\n" + LAST + NEXT) == [400]


def test_bare_line_feeds_end_no_line(address: tuple[str, int]) -> None:
    request = (HEAD + LENGTH + LAST).replace(b"\r\n", b"\n") + BODY
    assert statuses(address, request) == [400]
    assert statuses(address, NEXT.replace(b"host", b"x-a: b\nx-b")) == [400]


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + LENGTH + LAST + BODY,
        HEAD + b"content-length: 00015\r\n" + LAST + BODY,
        b"\r\n\r\n" + HEAD + LENGTH + LAST + BODY,
        HEAD + b"expect: nope\r\n" + LENGTH + LAST + BODY,
        CHUNKED + CHUNK + END,
        CHUNKED.replace(b": chunked", b":\tchunked") + CHUNK + END,
        CHUNKED + b"%x;a=b\r\n%s\r\n%s" % (len(BODY), BODY, END),
    ],
    ids=["length", "zeros", "lines", "expect", "chunked", "tab", "extension"],
)
def test_what_has_one_meaning_is_read_so(address: tuple[str, int], sent: bytes) -> None:
    [(status, body)] = answers(address, sent + NEXT)
    assert status == 200
    assert json.loads(body)["body"] == {"model": "base", "prompt": "x"}


def test_pipelined_requests_are_answered_in_order(address: tuple[str, int]) -> None:
    health = NEXT.replace(LAST, b"\r\n")
    sent = health + HEAD + LENGTH + b"\r\n" + BODY + NEXT + NEXT
    found = answers(address, sent)
    assert [status for status, _ in found] == [200, 200, 200], "nothing follows `close`"
    assert b"serving" in found[0][1]
    assert b"prompt" in found[1][1]


def test_http_1_0_ends_with_its_answer(address: tuple[str, int]) -> None:
    assert statuses(address, b"GET /health HTTP/1.0\r\n\r\n" + NEXT) == [200]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://other/health", 200),  # as proxies ask: the path of it
        (b"http://other/stacked/x", 404),
        (b"//health", 200),
        (b"/health/", 200),
        (b"/health?x=/stacked/x", 200),
        (b"/%68ealth", 200),
        (b"/%2568ealth", 404),
        (b"/;/health", 404),
        (b"/health;x=1", 404),
        (b"/./health", 404),
        (b"/x/../health", 404),
        (b"/%2e/health", 404),
        (b"/x/%2e%2e/health", 404),
        (b"/health%00", 404),
        (b"/health%2f", 404),
        (b"/%2fhealth", 404),
        (b"/health%3fx", 404),
        (b"/%ff", 404),
        (b"*", 404),
    ],
)
def test_a_target_has_one_path(address: tuple[str, int], target: bytes, status: int) -> None:
    request = b"GET " + target + b" HTTP/1.1\r\nhost: x\r\n" + LAST
    assert statuses(address, request) == [status]


@pytest.mark.parametrize(
    ("protocol", "status"), [(b"h2c", 200), (b"websocket", 403), (b"TLS/1.0, HTTP/1.1", 200)]
)
def test_no_other_protocol_is_spoken(
    address: tuple[str, int], protocol: bytes, status: int
) -> None:
    request = (
        b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: " + protocol
        + b"\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )  # fmt: skip
    assert statuses(address, request) == [status]
