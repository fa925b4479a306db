"""The server process: its sockets, the engine's log, start, signals and shutdown.

HTTP is up before the engine, so that `/health` can report the progress of the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import uvicorn
import uvloop

from stacked.api.cors import LocalGate, with_cors
from stacked.api.gate import Gate, check_reach, open_gate
from stacked.api.gateway import Gateway
from stacked.api.listeners import bind, with_metrics
from stacked.api.process import Logged, engine_log, raise_file_limit, request_log
from stacked.api.protocol import bounded
from stacked.api.request_ids import in_log_lines
from stacked.api.routes import create_routes
from stacked.api.tls import Certificate
from stacked.config import ControlConfig, RayConfig, is_loopback
from stacked.engine.cpu_affinity import hand_over_soon
from stacked.engine.creating import LogSteps
from stacked.errors import EngineDead, EngineError, NotReady
from stacked.log_files import LogFiles
from stacked.service import Service, State
from stacked.steps import Progress

# What still runs when an engine is given up; a signal leaves more, see `_Server`.
_LAST_SECONDS = 10

# A request makes some 2,000 objects that live as long as it does, and few are in cycles. With
# Python's own 700, collections took 0.35 ms of CPU time a request under 64 clients, one in ten.
_COLLECTED_AT_ONCE = (20_000, 20, 20)

# A group may have 500.
_KEYS_SHOWN = 20


def run(
    config: ControlConfig,
    *,
    data_dir: Path,
    progress: Progress,
    sockets: list[socket.socket] | None = None,
    ray: Callable[[], RayConfig] | None = None,
) -> int:
    """Serve until told to stop; the process's exit code. Raises StackedError when it cannot start.

    `sockets`: bound already, in `bind`'s order; None: those of `server`'s addresses. `ray`: see
    `Service.ray`.

    SIGINT and SIGTERM let requests in flight finish within `server.drain_seconds`; a second one
    ends the process at once. What this process and the engine print goes to the engine's log from
    here on. Raises EngineDead when the engine died too often to be started again.
    """
    check_reach(config.server)
    gate = open_gate(config, data_dir)
    certificate = Certificate(config.server.tls) if config.server.tls else None
    sockets = bind(config.server) if sockets is None else sockets
    hand_over_soon()
    gc.set_threshold(*_COLLECTED_AT_ONCE)
    form = config.server.log
    content = bool(config.engine.get("enable_log_requests"))
    in_log_lines(prefixed=form == "text", content=content)
    log = engine_log(data_dir, config.retention.engine_logs, form)
    progress = Logged() if form == "json" else progress
    files = request_log(data_dir, log, form, on=config.server.access_log)
    progress.note(f"engine log  {log.path}\n{_who_may_call(config, gate)}")
    try:
        service = Service(config, data_dir, durable=True)
        service.ray = ray
        return uvloop.run(_serve(service, progress, sockets, files, gate, certificate))
    except EngineError as error:
        raise type(error)(f"{error}\nThe engine's log: {log.path}") from error
    finally:
        files.close()
        for sock in sockets:
            sock.close()


async def _serve(
    service: Service,
    progress: Progress,
    sockets: list[socket.socket],
    files: LogFiles,
    gate: Gate | LocalGate | None,
    certificate: Certificate | None,
) -> int:
    service.log_files = files
    files.begin(service.log_ids)
    settings = _uvicorn_config(service, gate)
    if certificate is not None:
        settings.load()
        settings.ssl = certificate.context
    server = _Server(service, settings)
    serving = asyncio.create_task(server.serve(sockets=sockets))
    starting = asyncio.create_task(service.start(progress))
    following = asyncio.create_task(_follow(files.engine, progress))
    try:
        await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        following.cancel()
        if not starting.done():
            await _abandon(starting)
            return 128 + server.signal
        await starting
        _announce(service, sockets, progress)
        given_up = asyncio.create_task(service.given_up.wait())
        await asyncio.wait({serving, given_up}, return_when=asyncio.FIRST_COMPLETED)
        given_up.cancel()
    finally:
        following.cancel()
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        await service.close()
    if service.state is State.FAILED:
        raise EngineDead(service.reason)
    return 0


class _Server(uvicorn.Server):
    """uvicorn, which listens until the service has let its requests finish."""

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service = service
        self._draining: asyncio.Task[None] | None = None
        self.signal = 0
        """What told it to stop."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; at a second signal, end the process, and what it started with it."""
        if self._draining is not None:
            os._exit(128 + sig)
        self.signal = sig
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        """Answer probes and refuse requests until those in flight have ended."""
        deadline = time.monotonic() + self._service.config.server.drain_seconds
        try:
            await self._service.drain()
        finally:
            # What runs no model, such as an upload, has what is left of the time.
            self.config.timeout_graceful_shutdown = max(1, round(deadline - time.monotonic()))
            self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again when it has stopped, which would cut our clean-up.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def _uvicorn_config(service: Service, gate: Gate | LocalGate | None) -> uvicorn.Config:
    settings = service.config.server
    routes = create_routes(service)
    app = with_cors(Gateway(service, routes, gate, service.usage, service.outcomes), settings.cors)
    return uvicorn.Config(
        with_metrics(app, Gateway(service, routes), settings),
        http=bounded(settings.limits, raise_file_limit()),
        timeout_keep_alive=ceil(settings.limits.idle_seconds),
        lifespan="off",  # the service starts in parallel with the server, not before it
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )


async def _follow(log: Path, progress: Progress) -> None:
    """Report the steps of a starting engine as they appear in its log."""
    steps = LogSteps()
    with log.open(encoding="utf-8", errors="replace") as lines:
        while steps:
            await asyncio.sleep(0.25)
            for line in lines:
                if (step := steps.begun(line)) is not None:
                    progress.step(step)


async def _abandon(starting: asyncio.Task[None]) -> None:
    """Stop a start that is under way; it ends the processes that it has started."""
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)


def _announce(service: Service, sockets: list[socket.socket], progress: Progress) -> None:
    host, port = sockets[0].getsockname()[:2]
    scheme = "https" if service.config.server.tls else "http"
    url = f"{scheme}://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    try:
        active = service.active
    except NotReady as nothing:
        progress.finish(f"The control plane is on {url}")
        progress.note(str(nothing))
        return
    routing = active.serving.live.routing
    labels = [route.label for route in routing]
    first = f"stacked predict --url {url} 'Hello'"
    if routing.base is None:
        first = f"curl {url}/v2/models/{quote(labels[0], safe='')}" if labels else ""
    more = f" and {len(labels) - _KEYS_SHOWN} more" if len(labels) > _KEYS_SHOWN else ""
    keys = ", ".join(labels[:_KEYS_SHOWN]) + more
    progress.finish(f"Serving group {active.name!r} on {url}")
    progress.note(f"inference keys  {keys}\ntry             {first}")


def _who_may_call(config: ControlConfig, gate: Gate | LocalGate | None) -> str:
    """A line for the person who starts a server."""
    server = config.server
    if gate is not None:
        clear = server.auth.bearer and server.tls is None and not is_loopback(server.host)
        warning = "\nwarning     tokens are sent unencrypted: set server.tls, or put TLS in front"
        return f"requests    {gate}" + warning * clear
    return "requests    need no credential: anyone who reaches this address may use this server"
