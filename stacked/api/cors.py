"""Pages in a browser: which may read answers, and which may send anything to a loopback address."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope

from stacked.callers import ANYONE, called_by
from stacked.config import CorsConfig, is_loopback
from stacked.errors import NotAllowed


def with_cors(app: ASGIApp, config: CorsConfig) -> ASGIApp:
    """`app`, which answers pages of these origins; as it is if there are none.

    Preflights carry no credentials, so that they are answered here, on every path. Everything that
    `app` sends has the headers, refusals included.
    """
    if not config.origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=config.origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["*"],  # ours, OCI's and those of rates: a page has no cookies to protect
    )


class LocalGate:
    """Admits everyone on this machine but the pages of others that a browser shows here.

    Such a page can send forms to a loopback address. Where its own name leads to one (DNS
    rebinding), it can read the answers too, and names itself in `host`.
    """

    challenge = ""
    """Nobody is asked for a credential."""

    def __init__(self, cors: CorsConfig) -> None:
        self._origins = cors.origins

    def __str__(self) -> str:
        return "need no credential: anyone who is on this machine may use this server"

    async def authenticate(
        self, scope: Scope, receive: Receive, *, deployment: str | None = None
    ) -> Receive:
        """As `Gate.authenticate`. Raises NotAllowed."""
        named = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = named.get(b"host", "localhost"), named.get(b"origin")
        if not is_loopback(_name_of(host)):
            raise NotAllowed(
                f"header host: {host[:200]!r} is not a loopback address or localhost, and as this "
                "server needs no credential, a page of another site may be calling; call "
                "127.0.0.1, or set server.auth.bearer (server.auth.none behind a proxy of yours)"
            )
        allowed = {f"http://{host}", f"https://{host}", *self._origins}
        if origin is not None and not allowed & {origin, "*"}:
            raise NotAllowed(
                f"a page of origin {origin[:200]!r} may not call this server, which needs no "
                "credential; add it to server.cors.origins if it may"
            )
        scope.update(called_by(ANYONE))
        return receive


def _name_of(host: str) -> str:
    """The name or address in a `host` header; empty if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
