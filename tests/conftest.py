"""Fixtures of the whole suite: the tiny base with its adapters, and one real server over them.

Other servers that several folders share are in `tests/servers.py`.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from hypothesis import settings

from tests import tiny
from tests.otlp import Collector, collector
from tests.serving import Server, free_port, serving

pytest_plugins = ["tests.postgres", "tests.servers", "tests.workers"]

# Bytecode is kept, whatever the environment says: vLLM, torch and transformers take ten seconds to
# compile, in each of the hundred processes that import them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell starts what runs in its background with SIGINT ignored, and what is started here would
# ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that does other work must not fail a test: nothing here asserts how long something took.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

KEYS = ("a", "b", "c")
PROMPT = "The quick brown fox"


def pytest_collection_finish() -> None:
    """Thousands of tests and whole libraries need no looking through, at each full collection."""
    gc.collect()
    gc.freeze()


# -- models and the server of them ----------------------------------------------------------


@dataclass(frozen=True)
class TinyModels:
    """A tiny base and seeded adapters of it, each of which answers differently."""

    base: Path
    adapters: dict[str, Path]

    @property
    def root(self) -> Path:
        """The directory that has all of them, below which servers may read."""
        return self.base.parent


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


# -- a container of a stacked deployment ----------------------------------------------------


def ocid(name: str) -> str:
    """The id of the model with this name in the container's model directory."""
    return f"ocid1.datasciencemodel.oc1.iad.{name}"


@pytest.fixture(scope="session")
def traces() -> Iterator[Collector]:
    """What `server` traces."""
    with collector() as found:
        yield found


@pytest.fixture(scope="session")
def server(
    tiny_models: TinyModels, traces: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The base, `a`, `b`, `c` and a member without a key, from a deployed-model directory."""
    directory, root = tmp_path_factory.mktemp("server"), tiny_models.root
    shutil.copytree(tiny_models.base, root / ocid("base"))
    for name in (*KEYS, "unkeyed"):
        below = "bucket/prefix" if name == "b" else ""  # as a member by reference
        shutil.copytree(tiny_models.adapters[name], root / ocid(name) / below)
    port, health_port = free_port(), free_port()
    environment = {
        "STACKED_MODEL_DIR": str(root),
        "STACKED_DATA_DIR": str(directory / "data"),
        "STACKED_LOG": "json",
        "STACKED_KEYS": json.dumps({key: ocid(key) for key in KEYS}),
        "MODEL": f"{root / ocid('base')}/",
        "PARAMS": "--served-model-name base --max-model-len 1024 --max-loras 4 --max_cpu_loras 12 "
        "--enable_lora --enable-auto-tool-choice --tool-call-parser hermes "
        f"--otlp-traces-endpoint {traces.url}",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "200",  # milliseconds until spans are sent
        "PORT": str(port),
        "HEALTH_CHECK_PORT": str(health_port),
        "MODEL_DEPLOY_ENABLE_STREAMING": "true",
        "TENSOR_PARALLELISM": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "WEB_CONCURRENCY": "1",
    }
    with serving(
        "--host", "127.0.0.1", directory=directory, port=port, environment=environment
    ) as running:
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


def complete(client: httpx.Client, key: str | None, prompt: str = PROMPT) -> str:
    """A greedy completion by body `model` on `/v1/completions`."""
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0}
    response = client.post("/v1/completions", json=body | ({"model": key} if key else {}))
    assert response.status_code == 200, response.text
    text = json.loads(response.text)["choices"][0]["text"]
    assert isinstance(text, str)
    return text
