"""Requests of more adapters than slots, on a real engine: all answered, by the right adapter."""

from __future__ import annotations

import concurrent.futures
import re
import threading
from collections import Counter

import pytest

from tests.conftest import KEYS, TinyModels, complete
from tests.serving import Server

pytestmark = pytest.mark.engine

CLIENTS_OF_EACH = 3
REQUESTS = 8
"""Of each name at least."""
MOST = 1000
"""Of each client: an adapter keeps its slot for forty requests of each of its clients."""


def test_more_adapters_than_slots_all_have_their_turns(
    server: Server, tiny_models: TinyModels, answers: dict[str, str]
) -> None:
    """Four slots, and five adapters that each have several requests in flight without a pause."""
    with server.client() as client:
        source = str(tiny_models.adapters["spare"])
        loading = {"lora_name": "spare", "lora_path": source}
        assert client.post("/v1/load_lora_adapter", json=loading).status_code == 200
        unkeyed = next(
            row["id"]
            for row in client.get("/v1/models").json()["data"]
            if row["id"] not in {"base", "spare", *KEYS}
        )
        names = ["base", *KEYS, unkeyed, "spare"]
        expected = {name: answers.get(name) or complete(client, name) for name in names}
    counts: Counter[str] = Counter()
    enough = threading.Event()

    def ask(name: str) -> set[str]:
        got = set()
        with server.client() as client:
            for _ in range(MOST):
                got.add(complete(client, name))
                counts[name] += 1
                if enough.is_set() or min(counts[each] for each in names) >= REQUESTS:
                    enough.set()
                    break
        return got

    # Nobody pauses before everyone has had some: in vLLM's own order the fifth adapter never would.
    everyone = names * CLIENTS_OF_EACH
    with concurrent.futures.ThreadPoolExecutor(len(everyone)) as threads:
        for name, got in zip(everyone, threads.map(ask, everyone), strict=True):
            assert got == {expected[name]}
    assert enough.is_set(), counts
    with server.client() as client:
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "spare"}).is_success
        shown = client.get("/metrics").text
    assert "stacked_requests_waiting{" not in shown
    assert 'stacked_queue_seconds_count{digest="base",key="base"}' in shown
    assert re.search(r"^stacked_slot_changes_total [1-9]", shown, re.MULTILINE)
    places = re.findall(r'^stacked_adapter_resident\{.*place="slot"\} 1', shown, re.MULTILINE)
    assert 1 <= len(places) <= 4
