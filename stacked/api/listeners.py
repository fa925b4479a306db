"""The addresses that a server listens on, and what is answered on that of the metrics."""

from __future__ import annotations

import errno
import socket

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from stacked.api.gate import METRICS
from stacked.config import Listener, ServerConfig
from stacked.errors import ConfigInvalid


def bind(server: ServerConfig) -> list[socket.socket]:
    """Listening sockets: the server's own, then those of other ports. Raises ConfigInvalid."""
    places = [(server.host, server.port)]
    if server.health_port not in (None, server.port):
        places.append((server.host, server.health_port))
    if isinstance(server.metrics, Listener):
        places.append((server.metrics.host, server.metrics.port))
    bound: list[socket.socket] = []
    try:
        for host, port in places:
            bound.append(_listen(host, port))
    except ConfigInvalid:
        for sock in bound:
            sock.close()
        raise
    return bound


def with_metrics(app: ASGIApp, unguarded: ASGIApp, server: ServerConfig) -> ASGIApp:
    """`app`, and on the metrics' own port those alone, for everyone, by `unguarded`."""
    own = server.metrics
    if not isinstance(own, Listener):
        return app
    absent = PlainTextResponse(f"only {METRICS} is here\n", status_code=404)

    async def by_port(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["server"][1] != own.port:
            await app(scope, receive, send)
        elif scope["path"] == METRICS and scope["method"] in ("GET", "HEAD"):
            await unguarded(scope, receive, send)
        else:
            await absent(scope, receive, send)

    return by_port


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigInvalid(f"server.host: {host!r} is not an address here ({error})") from error
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigInvalid(
                f"port {port} on {host} is in use; stop what listens there, or choose another "
                "with --port or server.port"
            ) from error
        raise ConfigInvalid(f"cannot listen on {host}:{port}: {error.strerror}") from error
    sock.setblocking(False)
    return sock
