"""Pages of other origins in a browser: CORS on every answer, before authentication."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from stacked.config import CorsConfig


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
