"""Ray Serve's choice of a replica, made by `placement`.

It runs in Ray's proxies. They have read the headers of a request and not its body: a key is known
where a header or the path names it, and a request that names it in its body alone goes to whoever
has the fewest.
"""

from __future__ import annotations

import pickle
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from stacked.errors import StackedError
from stacked.ray.placement import Replica, ranked
from stacked.serving.names import names_of
from stacked.serving.targets import place_of


class Router(RequestRouter):  # type: ignore[misc]
    """Sends a request to the first replica of `placement.ranked` that is free."""

    def initialize_state(self, copies: int = 2, **_: Any) -> None:
        self._copies = copies

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Ray tries the lists in their order; in each, the replica with the shortest queue."""
        if pending_request is not None:
            # Without it, Ray calls again at once, and for ever, while every replica is full.
            pending_request.routing_context.should_backoff = True
        by_id = {each.replica_id.unique_id: each for each in candidate_replicas}
        seen = [self._seen(id, each) for id, each in by_id.items()]
        key = None
        if any(each.crowded or each.lacks for each in seen):
            key = _key_of(pending_request)
        return [[by_id[id] for id in some] for some in ranked(key, seen, self._copies)]

    def _seen(self, id: str, replica: RunningReplica) -> Replica:
        load = self.replica_queue_len_cache.get(replica.replica_id) or 0
        said = replica.routing_stats
        lacks = frozenset(said.get("lacks", ()))
        return Replica(id, load, said.get("ready", True), said.get("crowded", False), lacks)


def _key_of(request: PendingRequest | None) -> str | None:
    """The key that the headers or the path of an HTTP request name."""
    if request is None or not request.metadata.is_http_request or not request.args:
        return None
    sent = request.args[0]
    # This same process has pickled it for the replica.
    scope = (pickle.loads(sent) if isinstance(sent, bytes) else sent).asgi_scope  # noqa: S301
    try:
        target = place_of(scope["method"], scope["raw_path"].decode("latin-1")).target
        named = names_of(target.model if target else None, scope["headers"], {})
    except StackedError:  # the replica will say what is wrong with it
        return None
    return next(iter(named.values()), None)
