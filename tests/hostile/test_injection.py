"""Hostile texts in every place of the control plane that takes one: no 5xx, no header of theirs, no
file outside, and a server that answers as before. Inference is in tests/contract, on an engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.contract.rig import Rig, rig

TEXTS = {
    "surrogate": "\ud800",
    "nul": "a\0b",
    "header": "a\r\nset-cookie: x=1",
    "escape": "\x1b[31m",
    "direction": "\u202e",
    "long": "x" * 100_000,
    "above": "../../outside",
    "slash": "a/b",
    "empty": "",
    "dots": "..",
    "emoji": "😀",
    "coded": "%0d%0a%00%2f..",
    "markup": "<script>x</script>{{7*7}}",
    "sql": "' OR 1=1; --",
}
COLLECTIONS = (
    "models",
    "modelGroups",
    "modelDeployments",
    "workRequests",
    "modelGroupVersionHistory",
    "modelVersionSets",
)
HEADERS = (
    "opc-request-id",
    "opc-retry-token",
    "if-match",
    "range",
    "content-disposition",
    "origin",
)
QUERIES = ("displayName", "page", "limit", "sortBy", "compartmentId", "lifecycleState")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("injection") / "deeper" / "than" / "texts"
    directory.mkdir(parents=True)
    with rig(directory) as running:
        running.stock()
        yield running


class Asked:
    """Sends, and holds every answer against what none may be."""

    def __init__(self, server: Rig) -> None:
        self.http = server.http

    def __call__(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        if body is not None and not isinstance(body, bytes):
            more["headers"] = {"content-type": "application/json"}
            body = json.dumps(body).encode()
        answer = self.http.request(method, path, content=body, **more)
        assert answer.status_code < 500 or answer.status_code == 501, f"{method} {path}: {answer}"
        assert "set-cookie" not in answer.headers
        for name, value in answer.headers.items():
            assert value.isprintable(), f"{method} {path}: {name}: {value!r}"
        return answer


@pytest.fixture
def ask(server: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    yield Asked(server)
    assert server.http.get("/health").status_code == 200
    assert not list(Path(server.roots).parents[3].rglob("outside"))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_in_a_body_is_stored_or_refused(server: Rig, ask: Asked, text: str) -> None:
    model = server.ids["models"][0]
    for field in ("displayName", "description", "compartmentId", "projectId"):
        made = ask("POST", "/20190101/models", {"displayName": "x", field: text})
        if made.is_success and text and field in ("displayName", "description"):
            again = ask("GET", f"/20190101/models/{made.json()['id']}").json()
            assert again[field] == text
    ask("POST", "/20190101/models", {"freeformTags": {text: text}})
    ask("POST", "/20190101/models", {"definedTags": {text: {text: text}}})
    item = dict.fromkeys(("key", "value", "category", "description"), text)
    ask("POST", "/20190101/models", {"customMetadataList": [item]})
    ask("POST", "/20190101/models", {"customMetadataList": [{"key": "source", "value": text}]})
    ask("PUT", f"/20190101/models/{model}", {"displayName": text})
    ask("POST", "/20190101/modelGroupVersionHistory", {"displayName": text})
    ask("POST", "/20190101/modelVersionSets", {"name": text})
    ask("POST", "/20190101/modelGroups", {"displayName": text, "modelGroupDetails": {"type": text}})
    ask("POST", "/models/x1", {"source": text})
    ask("POST", "/models/x2", {"source": str(server.roots / "adapter-1"), "key": text})
    ask("POST", "/v1/load_lora_adapter", {"lora_name": text, "lora_path": text})


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_in_a_path_or_query_is_a_name_or_refused(server: Rig, ask: Asked, text: str) -> None:
    name, model = quote(text[:5000], safe="", errors="surrogatepass"), server.ids["models"][0]
    for collection in COLLECTIONS:
        assert ask("GET", f"/20190101/{collection}/{name or '%20'}").status_code in (400, 404)
        ask("DELETE", f"/20190101/{collection}/{name or '%20'}")
        for query in QUERIES:
            ask("GET", f"/20190101/{collection}?{query}={name}")
    paths = [
        f"/20190101/models/{model}/customMetadata/{name}/artifact",
        f"/20190101/models/{model}/definedMetadata/{name}/artifact",
        f"/stacked/adapters/{name}",
        f"/stacked/usage?since={name}",
        f"/models/{name}/health",
    ]
    for path in paths:
        ask("GET", path)
        for method in ("PUT", "POST", "DELETE"):
            ask(method, path, b"{}")


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_in_a_header_is_read_or_refused(server: Rig, ask: Asked, text: str) -> None:
    value = text[:5000].encode("utf-8", "surrogatepass")
    if any(byte < 32 for byte in value):
        pytest.skip("no client and no server sends it: tests/hostile/test_wire.py")
    path = f"/20190101/models/{server.ids['models'][0]}"
    for header in HEADERS:
        ask("GET", path, headers=[(header.encode(), value)])
        ask("POST", f"{path}/artifact", b"x", headers=[(header.encode(), value)])


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"displayName":' + b"9" * 5000 + b"}",
        b'{"displayName":' + b"9" * 1_000_000 + b"}",
        b"{" + b",".join(b'"k%d":1' % number for number in range(300_000)) + b"}",
        b'{"displayName":1e400}',
        b'{"displayName":NaN}',
        b"\xff\xfe",
        b'"' + b"\\ud800" * 1000 + b'"',
        b'{"a":"' + b"\\u0000" * 1000 + b'"}',
        b"\x00" * 100_000,
        b"",
    ],
    ids=["lists", "objects", "digits", "more digits", "keys", "inf", "nan", "bom", "surrogates",
         "nuls", "zeros", "nothing"],
)  # fmt: skip
def test_a_bomb_of_json_is_refused_at_once(ask: Asked, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    paths = ("models", "modelGroups", "modelDeployments", "modelVersionSets")
    for path in (*(f"/20190101/{name}" for name in paths), "/models/x", "/v1/load_lora_adapter"):
        ask("POST", path, body, headers=headers)
