"""The container's entry point: a STACKED environment over a deployed-model directory is served.

It is how the session's server is started, see `tests/conftest.py`.
"""

from __future__ import annotations

import httpx
import pytest

from tests.conftest import KEYS, ocid
from tests.serving import Server

pytestmark = pytest.mark.engine

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0}


def said(http: httpx.Client, name: str) -> str:
    """A chat answer by the documented selector of STACKED deployments: the body's model."""
    response = http.post("/v1/chat/completions", json=CHAT | {"model": name})
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_models_have_their_keys_and_ocids(http: httpx.Client) -> None:
    listed = {row["id"] for row in http.get("/v1/models").json()["data"]}
    assert listed == {"base", *KEYS, ocid("unkeyed")}
    texts = {name: said(http, name) for name in listed}
    assert len(set(texts.values())) == len(listed)
    for key in ("base", *KEYS):
        assert said(http, ocid(key)) == texts[key]


def test_the_platforms_verbs_take_an_ocid_alone(http: httpx.Client) -> None:
    before = said(http, "a")
    assert http.delete(f"/models/{ocid('a')}").status_code == 200
    assert http.get(f"/models/{ocid('a')}/health").status_code == 404
    assert http.post(f"/models/{ocid('a')}").status_code == 200
    assert said(http, ocid("a")) == said(http, "a") == before


def test_probes_are_answered_on_their_own_port(server: Server) -> None:
    port = server.environment["HEALTH_CHECK_PORT"]
    assert httpx.get(f"http://127.0.0.1:{port}/health").json()["status"] == "serving"
