"""What must be true of a server that was killed, once it runs again: records, store, answers.

It must not know how it was killed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stacked.store import AdapterStore
from tests.processes import descendants, wait_until_gone
from tests.serving import Server

API = "/20190101"


@dataclass(frozen=True)
class Held:
    """What is served, and what an update under way would make of it."""

    deployment_id: str
    group_id: str
    generation: int

    @classmethod
    def of(cls, client: httpx.Client) -> Held:
        tree = got(client, "/stacked/status")
        return cls(tree["deploymentId"], tree["groupId"], tree["generation"])


def got(client: httpx.Client, path: str) -> Any:
    response = client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


def kill(server: Server) -> None:
    """`kill -9`, after which nothing that the server had started is left either."""
    started = descendants(server.process.pid)
    assert len(started) > 1, "an engine is a process at least, beside multiprocessing's own"
    server.process.kill()
    server.process.wait()
    wait_until_gone(started)


def check_records(client: httpx.Client, before: Held, wanted_id: str, work_id: str) -> bool:
    """Old group and FAILED, or new group and SUCCEEDED, and nothing in progress; which one."""
    work = got(client, f"{API}/workRequests/{work_id}")
    now = Held.of(client)
    committed = bool(work["status"] == "SUCCEEDED")
    if committed:
        assert now == Held(before.deployment_id, wanted_id, before.generation + 1)
    else:
        assert work["status"] == "FAILED"
        assert now == before
        assert got(client, f"{API}/workRequests/{work_id}/errors")
    deployment = got(client, f"{API}/modelDeployments/{now.deployment_id}")
    assert deployment["lifecycleState"] == "ACTIVE"
    every = got(client, f"{API}/workRequests?compartmentId=c&limit=1000")
    assert {each["status"] for each in every} <= {"SUCCEEDED", "FAILED", "CANCELED"}
    status = got(client, "/stacked/status")
    assert (status["state"], status["update"], status["draining"]) == ("ACTIVE", None, [])
    return committed


def check_store(data: Path) -> None:
    """No temporary directory, and every adapter is what its digest says."""
    assert os.listdir(data / "store" / "staging") == []
    store = AdapterStore(data / "store")
    digests = store._shelf.digests()
    assert digests
    for digest in digests:
        store.verify(digest)
