"""Fixtures of the whole suite: the tiny base with its adapters, and one real server over them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from tests import tiny
from tests.serving import Server, free_port, serving

# Bytecode is kept, whatever the environment says: vLLM, torch and transformers take ten seconds to
# compile, in each of the hundred processes that import them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell starts what runs in its background with SIGINT ignored, and what is started here would
# ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

KEYS = ("a", "b", "c")


@dataclass(frozen=True)
class TinyModels:
    """A tiny base and seeded adapters of it, each of which answers differently."""

    base: Path
    adapters: dict[str, Path]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    directory = tmp_path_factory.mktemp("tiny")
    base = tiny.build_base(directory / "base")
    names = [*KEYS, "spare", "unkeyed"]
    adapters = {
        name: tiny.build_adapter(directory / name, base, seed)
        for seed, name in enumerate(names, start=1)
    }
    return TinyModels(base, adapters)


@pytest.fixture(scope="session")
def server(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server of the base, `a`, `b`, `c` and a member without a key, for the whole session."""
    directory = tmp_path_factory.mktemp("server")
    port = free_port()
    tree = {
        "base": {"model": str(tiny_models.base), "key": "base"},
        "group": {
            "name": "tiny",
            "members": [
                *({"key": key, "source": str(tiny_models.adapters[key])} for key in KEYS),
                {"source": str(tiny_models.adapters["unkeyed"])},
            ],
        },
        "engine": {
            "max_model_len": 256,
            "max_loras": 4,
            "enable_auto_tool_choice": True,
            "tool_call_parser": "hermes",
        },
        "server": {
            "port": port,
            "max_body_bytes": 100_000,
            "drain_seconds": 20,
            "adapter_roots": [str(tiny_models.base.parent)],
        },
    }
    config = directory / "tiny.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with serving(str(config), "--data-dir", "data", directory=directory, port=port) as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def answers(server: Server) -> dict[str, str]:
    """The greedy answer of each key to one prompt; all differ, so an answer names its maker."""
    with server.client() as client:
        texts = {key: complete(client, key) for key in ("base", *KEYS)}
    assert len(set(texts.values())) == len(texts), texts
    return texts


PROMPT = "The quick brown fox"


def complete(client: httpx.Client, key: str | None, prompt: str = PROMPT) -> str:
    """A greedy completion by body `model` on `/v1/completions`."""
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0}
    response = client.post("/v1/completions", json=body | ({"model": key} if key else {}))
    assert response.status_code == 200, response.text
    text = json.loads(response.text)["choices"][0]["text"]
    assert isinstance(text, str)
    return text
