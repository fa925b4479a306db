"""How the server is reached, and what its callers may do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stacked.config.auth import AuthConfig
from stacked.config.fairness import FairnessConfig
from stacked.config.fields import Frozen
from stacked.config.limits import LimitsConfig

PredictEndpoint = Literal["/v1/completions", "/v1/chat/completions"]
UnknownParameters = Literal["refuse", "ignore"]
LogForm = Literal["text", "json"]
Address = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*://.+")]


def _without_last_slash(path: str) -> str:
    """As the gateway sees paths, where a trailing slash is ignored."""
    return path.rstrip("/") or "/"


class CorsConfig(Frozen):
    """Which pages of other origins may read the answers, in a browser.

    They send credentials in headers, as every client does; cookies and the like are none here.
    """

    origins: tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s*]+)$")], ...] = ()
    """As browsers send them, `https://app.example.com`, or `*`. Empty: no other origin."""


class Listener(Frozen):
    """An address of its own, where nobody is authenticated."""

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)


class TlsConfig(Frozen):
    """Files in PEM form; they are read again when they change."""

    cert: str
    """The certificate, followed by those up to its authority's."""
    key: str
    ca: str | None = None
    """The authorities of which every client must have a certificate; None: clients need none."""


class ServerConfig(Frozen):
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    health_port: int | None = Field(default=None, ge=1, le=65535)
    """Where `/health` also answers, if the platform probes another port."""
    health_path: Annotated[str, AfterValidator(_without_last_slash)] | None = Field(
        default=None, pattern=r"^/[\w./-]*$"
    )
    """Another path that answers as `/health` does."""
    tls: TlsConfig | None = None
    """Serve HTTPS, on every port."""
    metrics: Literal["open", "admin"] | Listener | None = None
    """Who may read `/metrics`: everyone, admin credentials, or who reaches that listener. None:
    every caller, but for those whose credential is held to some keys."""
    predict_endpoint: PredictEndpoint | None = None
    """What `/predict` means; None: `messages` in the body means chat, else completions."""
    unknown_parameters: UnknownParameters | None = None
    """What happens to body parameters that vLLM does not know; None: refused on vLLM's own paths,
    ignored on `/predict` and below, whose clients send parameters of other servers."""
    log: LogForm = "text"
    """`json`: an object for each line of every log, and all of them on standard output too."""
    access_log: bool = True
    """Whether each request has a line."""
    max_body_bytes: int = Field(default=10 * 1024 * 1024, ge=1024)
    max_artifact_bytes: int = Field(default=64 * 1024**3, ge=1024)
    """How large an uploaded artifact of a model or group may be."""
    drain_seconds: float = Field(default=300, ge=0)
    """How long requests may finish on a removed adapter or at shutdown before they are ended."""
    runtime_updates: bool | None = None
    """Whether HTTP callers may load and remove adapters; None: on a loopback address, and if
    requests are signed."""
    adapter_roots: tuple[str, ...] = ()
    """Local directories from which HTTP callers may load adapters."""
    remote_adapters: bool | tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*://.+")], ...] = (
        False
    )
    """Whether HTTP callers may load adapters from the Hub and from http(s) addresses; or the
    addresses below which they may, such as `s3://bucket/adapters`. Object stores are read with this
    server's credentials, so each has to be listed."""
    foreign_tokens: bool = False
    """The same as a member's, for every adapter, however it is loaded."""
    trust_request_grammars: bool = False
    """Whether schemas and grammars in requests may be as costly as they like."""
    shape_names: tuple[Annotated[str, Field(min_length=1, max_length=255)], ...] = (
        "VM.GPU.A10.1",
        "VM.GPU.A10.2",
        "BM.GPU.A10.4",
        "VM.Standard.E4.Flex",
    )
    """Further names of this machine, besides `LOCAL`, in the list of shapes: those that clients of
    the control plane look up by name. A deployment may name any."""
    auth: AuthConfig = AuthConfig()
    cors: CorsConfig = CorsConfig()
    limits: LimitsConfig = LimitsConfig()
    fairness: FairnessConfig = FairnessConfig()

    @property
    def remote_sources(self) -> tuple[str, ...]:
        """The addresses below which callers may load adapters."""
        if isinstance(self.remote_adapters, bool):
            return ("hf://", "http://", "https://") if self.remote_adapters else ()
        return self.remote_adapters

    @model_validator(mode="after")
    def _ports_differ(self) -> ServerConfig:
        if isinstance(self.metrics, Listener) and self.metrics.port in (
            self.port,
            self.health_port,
        ):
            raise ValueError(f"metrics.port: {self.metrics.port} is the server's own port")
        return self
