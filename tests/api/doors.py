"""A server in this process over real HTTP, and keys to sign requests to it with.

It must not know an engine: what answers is a small app of the test's own.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import oci
import uvicorn
from starlette.types import ASGIApp

from stacked.api.gate import open_gate
from stacked.api.gateway import Gateway
from stacked.config import AuthConfig, BaseConfig, Config, OciAuth, ServerConfig
from stacked.keys import Rights, create_signing
from stacked.service import Service


def config_of(**server: Any) -> Config:
    """A config whose requests need a credential of the data directory."""
    server.setdefault("auth", AuthConfig(oci=OciAuth()))
    return Config(base=BaseConfig(model="tiny"), server=ServerConfig(**server))


def gateway_of(app: ASGIApp, data_dir: Path, config: Config | None = None) -> Gateway:
    """The gateway before `app`; there is no engine behind it."""
    tree = config or config_of()
    service = cast(Service, SimpleNamespace(config=tree))
    return Gateway(service, app, open_gate(tree, data_dir))


@contextmanager
def served(app: ASGIApp, tls: ssl.SSLContext | None = None, **options: Any) -> Iterator[str]:
    """The app's address, while the block runs. `options` are uvicorn's."""
    config = uvicorn.Config(
        app, port=0, lifespan="off", log_config=None, access_log=False, **options
    )
    config.load()
    config.ssl = tls
    server = uvicorn.Server(config)
    sock = config.bind_socket()
    sock.listen()  # so that a client may connect before the server takes it
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        sock.close()


def sdk_config(
    data_dir: Path, name: str = "alice", *, admin: bool = True, force: bool = False
) -> dict[str, Any]:
    """Make a key, and read the file that was written for OCI's SDK as the SDK does."""
    made = create_signing(data_dir, name, Rights(admin=admin), force=force)
    return cast(dict[str, Any], oci.config.from_file(str(made.sdk_config)))


def signer(config: dict[str, Any]) -> oci.signer.Signer:
    return oci.signer.Signer.from_config(config)
