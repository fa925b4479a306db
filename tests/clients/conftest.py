"""The demo for callers with tokens, and what runs a client's program against it with one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from stacked.keys import Rights, create
from tests.clients.environments import Client, NotInstalled
from tests.servers import serving_demo
from tests.serving import Server

SQL = (
    "Write one SQL query.\nSchema: singers(name, country, age)\n"
    "Question: Count the singers with country Peru."
)
UNIT_PARAMETERS = {
    "type": "object",
    "properties": {"unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
KEYS = ["base", "sql", "sql-v1", "triage", "pirate"]
ASKED = {
    "sql": SQL,
    "triage": "I was charged twice! Help, now.",
    "pirate": "Where is the treasure?",
    "france": "The capital of France is",
    "unit": "Use celsius, please.",
    "unit_parameters": UNIT_PARAMETERS,
}

Use = Callable[..., dict[str, Any]]
"""`use(client, **more)`: what the client's program told, asked `ASKED` and `more`."""


@pytest.fixture(scope="session")
def guarded(
    base_dir: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The demo for callers with tokens, whose metrics are for everyone."""
    directory, auth = tmp_path_factory.mktemp("guarded"), {"bearer": True}
    with serving_demo(directory, data_dir, auth=auth, metrics="open") as running:
        yield running


@pytest.fixture
def use(request: pytest.FixtureRequest) -> Use:
    """Runs a program and then looks whether it left the server as it was."""

    def run(client: Client, **more: Any) -> dict[str, Any]:
        try:
            client.install()  # before the demo is started, which is for nothing without it
        except NotInstalled as reason:
            pytest.skip(str(reason))
        server: Server = request.getfixturevalue("guarded")
        keys = Rights(keys=frozenset(KEYS))
        token = create(server.directory / "data", Path(client.program).stem, keys, force=True)
        told = client.run({"url": server.url, "api_key": token} | ASKED | more)
        _wait_until_idle(server)
        return told

    return run


def counted(server: Server, sample: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    return sum(
        each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
        if each.name == sample and labels.items() <= each.labels.items()
    )


def _wait_until_idle(server: Server, seconds: float = 60) -> None:
    """Return when no request is left; AssertionError where one is, or where all is not well."""
    deadline = time.monotonic() + seconds
    while counted(server, "stacked_requests_in_flight"):
        assert time.monotonic() < deadline, "a request of a client that has ended still runs"
        time.sleep(0.1)
    assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


def reference_log_likelihoods(
    base: Path, adapter: Path | None, pairs: list[tuple[str, str]]
) -> list[float]:
    """Sums of the continuations' log-probabilities by transformers (and peft), in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).float()
    model.eval()
    sums = []
    for context, continuation in pairs:
        start = len(tokenizer(context).input_ids)
        ids = torch.tensor(tokenizer(context + continuation).input_ids)
        with torch.inference_mode():
            log_probs = model(ids[None]).logits[0].log_softmax(-1)
        sums.append(log_probs[start - 1 : -1].gather(1, ids[start:, None]).sum().item())
    return sums
