from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="stacked[fleet] is not installed")

from ray.serve._private.common import (  # noqa: E402
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
    RequestProtocol,
    StreamingHTTPRequest,
)
from ray.serve._private.request_router.common import PendingRequest  # noqa: E402

from stacked.ray.placement import Replica, ranked  # noqa: E402
from stacked.ray.router import Router  # noqa: E402

ID = DeploymentID("replica", "group")


def replica(name: str, **stats: Any) -> Any:
    return SimpleNamespace(replica_id=ReplicaID(name, ID), routing_stats=stats)


def request(path: bytes = b"/predict", **headers: str) -> PendingRequest:
    scope = {
        "method": "POST",
        "raw_path": path,
        "headers": [(n.replace("_", "-").encode(), text.encode()) for n, text in headers.items()],
    }
    sent = pickle.dumps(StreamingHTTPRequest(asgi_scope=scope, proxy_actor_name="proxy"))
    metadata = RequestMetadata("r", "i", _request_protocol=RequestProtocol.HTTP)
    return PendingRequest(args=[sent], kwargs={}, metadata=metadata)


@pytest.fixture
async def router() -> Router:
    found = Router(ID, DeploymentHandleSource.PROXY, use_replica_queue_len_cache=True)
    found.initialize_state(copies=2)
    return found


async def chosen(router: Router, replicas: list[Any], pending: Any) -> list[list[str]]:
    lists = await router.choose_replicas(replicas, pending)
    return [[each.replica_id.unique_id for each in some] for some in lists]


async def test_a_key_in_a_header_or_the_path_chooses_where_slots_are_few(router: Router) -> None:
    replicas = [replica(f"r{n}", ready=True, crowded=True, lacks=[]) for n in range(5)]
    names = [Replica(f"r{n}", crowded=True) for n in range(5)]
    for pending in (
        request(model_key="a"),
        request(b"/models/a/predict"),
        request(b"/v2/models/a/infer"),
        request(b"/openai/deployments/a/completions"),
    ):
        assert await chosen(router, replicas, pending) == ranked("a", names, 2)
        assert pending.routing_context.should_backoff
    everywhere = [[f"r{n}" for n in range(5)]]
    assert await chosen(router, replicas, request(b"/v1/completions")) == everywhere
    assert await chosen(router, replicas, None) == everywhere
    refused = request(b"/models/%ff/predict", model_key="\x00")
    assert sum(map(len, await chosen(router, replicas, refused))) == 5


async def test_what_ray_has_counted_is_the_load(router: Router) -> None:
    replicas = [replica(f"r{n}", ready=True, crowded=True) for n in range(4)]
    first = (await chosen(router, replicas, request(model_key="a")))[0]
    for _ in range(30):
        router.on_send_request(ReplicaID(first[0], ID))
    then = (await chosen(router, replicas, request(model_key="a")))[0]
    assert first[0] not in then
    assert first[1] in then


async def test_whole_before_lacking_before_not_ready_and_a_new_one_is_as_good(
    router: Router,
) -> None:
    replicas = [
        replica("gone", ready=False),
        replica("lacks", ready=True, crowded=False, lacks=["a"]),
        replica("whole", ready=True, crowded=False, lacks=[]),
        replica("new"),
    ]
    found = await chosen(router, replicas, request(model_key="a"))
    assert found == [["whole", "new"], ["lacks"], ["gone"]]
    found = await chosen(router, replicas, request(model_key="b"))
    assert found == [["lacks", "whole", "new"], ["gone"]]
