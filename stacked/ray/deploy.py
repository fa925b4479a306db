"""A file's fleet on a Ray cluster: that of $RAY_ADDRESS, one that runs here, or one of its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from stacked.config import ControlConfig, GroupConfig, Listener, RayConfig, ScaleConfig
from stacked.errors import ConfigInvalid, EngineStartFailed
from stacked.ray.replica import Replica

# Ray asks each replica whether it is ready, and what it lacks, this often.
_ROUTING_SECONDS = 1.0
_HEALTH_SECONDS = 5.0
# A replica leaves the fleet, which takes a lease at most, and then ends its engine.
_LEAVE_SECONDS = 60.0
# Requests are large only on their way: Ray's own default is a third of the machine's memory.
_OBJECTS_BYTES = 128 * 1024**2


class Deployed(NamedTuple):
    url: str
    own: bool
    """Whether the cluster is of this process, and ends with it."""


def connect(*, start: bool = True) -> bool:
    """Join a running cluster, or with `start` begin one here; whether one was begun.

    Raises EngineStartFailed if there is none and none may be begun.
    """
    quiet: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    try:
        ray.init(address="auto", **quiet)
        return False
    except ConnectionError as error:
        if not start:
            raise EngineStartFailed(f"no Ray cluster is running here: {error}") from error
    # A proxy that is not up after 5 s is started again, and on a busy machine never is.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "300")
    # Ray runs its workers, and so engines, at 15.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECTS_BYTES, **quiet)
    return True


def deploy(path: Path, config: ControlConfig, data_dir: Path) -> Deployed:
    """Have Ray Serve run this file's replicas, and change what runs to it; return when all serve.

    The file and what it names must have the same paths on every node. Raises EngineStartFailed with
    what a replica's server said, ConfigInvalid for several that are no fleet.
    """
    if config.ray.replicas != 1 and config.fleet is None:
        raise ConfigInvalid(
            "ray.replicas: several servers need `fleet: {}` and a storage.database, or an update "
            "would reach one of them"
        )
    server = config.server
    own = connect()
    http: dict[str, Any] = {"host": server.host, "port": server.port}
    if server.tls is not None:
        tls = {"ssl_certfile": server.tls.cert, "ssl_keyfile": server.tls.key}
        http |= tls | {"ssl_ca_certs": server.tls.ca}
    # On a busy machine a proxy takes longer than Ray waits for it; its controller goes on trying.
    with contextlib.suppress(RayError, TimeoutError):
        serve.start(proxy_location="EveryNode", http_options=http)
    try:
        begin = config.group.name not in serve.status().applications
        app = application(path, config, data_dir, begin=begin)
        serve.run(app, name=config.group.name, route_prefix="/")
    except (RuntimeError, RayError) as error:
        raise EngineStartFailed(f"{error}; see: serve status") from error
    scheme = "https" if server.tls else "http"
    return Deployed(f"{scheme}://{server.host}:{server.port}", own)


def hold() -> None:
    """Until this process is told to end; then the replicas end, and the cluster of its own."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()


def stop(config: ControlConfig) -> None:
    """Have Ray Serve stop this file's replicas, each when its requests have ended."""
    connect(start=False)
    serve.delete(config.group.name)


def application(path: Path, config: ControlConfig, data_dir: Path, *, begin: bool) -> Any:
    """The one deployment of an application of Ray Serve.

    `begin`: there is none yet, so that the file says how many replicas are started.
    """
    wanted, drain = config.ray, config.server.drain_seconds
    metrics = config.server.metrics
    place = (metrics.host, metrics.port) if isinstance(metrics, Listener) else ("127.0.0.1", 0)
    resources = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus, "resources": wanted.resources}
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="replica",
        ray_actor_options=resources,
        # A replica has bounds of its own, and says which was reached.
        max_ongoing_requests=config.server.limits.connections,
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=drain + _LEAVE_SECONDS,
        graceful_shutdown_wait_loop_s=0.5,
        request_router_config=RequestRouterConfig(
            request_router_class="stacked.ray.router.Router",
            request_router_kwargs={"copies": wanted.copies},
            request_routing_stats_period_s=_ROUTING_SECONDS,
        ),
        autoscaling_config=_autoscaling(wanted, begin=begin),
        user_config=wanted.model_dump(mode="json"),
    )
    # Without one, Ray takes every deployment for another program, and starts all replicas again.
    version = version_of(config, path, data_dir)
    return deployment.options(version=version, _internal=True).bind(
        str(path.absolute()), str(data_dir), place, drain + _LEAVE_SECONDS
    )


def version_of(config: ControlConfig, *places: Path) -> str:
    """What replicas are started again for: other settings, not another group or number of them."""
    group = GroupConfig(name=config.group.name)
    lasting = config.model_copy(update={"group": group, "ray": RayConfig()}).model_dump_json()
    text = "\n".join([lasting, *(str(place.absolute()) for place in places)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _autoscaling(wanted: RayConfig, *, begin: bool) -> AutoscalingConfig:
    """Of a fixed number too, as the deployment's scaling policy may say another one."""
    scale = wanted.replicas if isinstance(wanted.replicas, ScaleConfig) else ScaleConfig(max=1)
    least, most = wanted.bounds
    policy = AutoscalingPolicy(
        policy_function="stacked.ray.scaling:Policy",
        policy_kwargs={
            "least": least,
            "most": most,
            "each": scale.requests,
            "most_seconds": scale.first_token_seconds,
            "up_after": scale.up_after.total_seconds(),
            "down_after": scale.down_after.total_seconds(),
        },
    )
    return AutoscalingConfig(
        min_replicas=1,
        max_replicas=wanted.most,
        initial_replicas=least if begin else None,
        target_ongoing_requests=scale.requests,
        # The policy has delays of its own: a number that somebody says is followed at once.
        upscale_delay_s=0,
        downscale_delay_s=0,
        policy=policy,
    )
