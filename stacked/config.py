"""One YAML file as one frozen, validated tree; unknown keys are refused with their location."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Hashable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from stacked.core import check_key, check_model_id
from stacked.errors import ConfigInvalid, StackedError

PredictEndpoint = Literal["/v1/completions", "/v1/chat/completions"]
UnknownParameters = Literal["refuse", "ignore"]

LOW_DISK_BYTES = 4 * 1024**3

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION = re.compile(r"(\d{1,6})\s*([smhd])")


def _as_value_error(check: Any) -> Any:
    """Raises our own errors as ValueError, so that pydantic adds the key path."""

    def checked(text: str) -> str:
        try:
            return str(check(text))
        except StackedError as error:
            raise ValueError(str(error)) from error

    return checked


def _duration(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("expected a number and a unit: 90s, 15m, 12h or 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _without_last_slash(path: str) -> str:
    """As the gateway sees paths, where a trailing slash is ignored."""
    return path.rstrip("/") or "/"


Key = Annotated[str, AfterValidator(_as_value_error(check_key))]
Duration = Annotated[timedelta, BeforeValidator(_duration)]
Ocid = Annotated[str, AfterValidator(_as_value_error(check_model_id))]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class BaseConfig(_Frozen):
    """The base model: a directory, a Hub id, or a name that `stacked prepare` knows."""

    model: str = Field(min_length=1)
    key: Key = "base"
    id: Ocid | None = None


class MemberConfig(_Frozen):
    """One fine-tune. Without `id`, the model id is derived from the content digest."""

    source: str = Field(min_length=1)
    key: Key | None = None
    id: Ocid | None = None
    foreign_tokens: bool = False
    """Serve it even if its tokenizer has tokens that the base's lacks, without these."""


class GroupConfig(_Frozen):
    name: str = Field(default="default", min_length=1, max_length=255)
    members: tuple[MemberConfig, ...] = ()
    metadata: dict[str, str] = {}


class OciAuth(_Frozen):
    """Requests must be signed as by OCI's SDKs, with one of these keys."""

    keys: dict[str, str] = {}
    """`tenancy/user/fingerprint` to a public key: PEM, or the path of one."""
    directory: str | None = None
    """Where `stacked keys create` registers keys; None: `keys` in the data directory."""
    clock_skew_seconds: float = Field(default=300, gt=0, le=3600)
    """How far a request's date may be from the server's clock."""


class AuthConfig(_Frozen):
    """Who may call. With neither, unsigned requests are accepted, on loopback only."""

    oci: OciAuth | None = None
    none: bool = False
    """Whether unsigned requests are accepted on any address."""

    @field_validator("oci", mode="before")
    @classmethod
    def _on_or_described(cls, value: object) -> object:
        if value is None or value is False:  # an empty `oci:` was not meant to switch it off
            raise ValueError("expected true, or a mapping with keys, directory, clock_skew_seconds")
        return {} if value is True else value

    @model_validator(mode="after")
    def _one_of_them(self) -> AuthConfig:
        if self.oci is not None and self.none:
            raise ValueError(
                "oci requires signed requests and none accepts unsigned ones; set only one"
            )
        return self


class ServerConfig(_Frozen):
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    health_port: int | None = Field(default=None, ge=1, le=65535)
    """Where `/health` also answers, if the platform probes another port."""
    health_path: Annotated[str, AfterValidator(_without_last_slash)] | None = Field(
        default=None, pattern=r"^/[\w./-]*$"
    )
    """Another path that answers as `/health` does."""
    predict_endpoint: PredictEndpoint | None = None
    """What `/predict` means; None: `messages` in the body means chat, else completions."""
    unknown_parameters: UnknownParameters | None = None
    """What happens to body parameters that vLLM does not know; None: refused on vLLM's own paths,
    ignored on `/predict` and below, whose clients send parameters of other servers."""
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
    remote_adapters: bool = False
    """Whether HTTP callers may load adapters from the Hub and from http(s) addresses."""
    foreign_tokens: bool = False
    """The same as a member's, for every adapter, however it is loaded."""
    shape_names: tuple[Annotated[str, Field(min_length=1, max_length=255)], ...] = (
        "VM.GPU.A10.1",
        "VM.GPU.A10.2",
        "BM.GPU.A10.4",
        "VM.Standard.E4.Flex",
    )
    """Further names of this machine, besides `LOCAL`, in the list of shapes: those that clients of
    the control plane look up by name. A deployment may name any."""
    auth: AuthConfig = AuthConfig()


class RetentionConfig(_Frozen):
    """How long the server stores what is no longer needed.

    What is served, was served before that, or is named by a model or a retained group version stays
    whatever its age.
    """

    interval: Duration = Field(default=timedelta(minutes=1), ge=timedelta(seconds=1))
    """How often the server looks for what can be removed."""
    unused_content: Duration = Field(default=timedelta(days=1), ge=timedelta(minutes=1))
    """Adapters and bases that no record ever named, such as uploads, since their last use."""
    group_versions: int = Field(default=10, ge=1)
    """How many groups of one version history are stored; of groups without one, of one name."""
    deleted_records: Duration = timedelta(days=30)
    """The records of models, groups, histories and deployments that were deleted."""
    work_requests: Duration = timedelta(days=30)
    """Work requests that have ended, with their logs and errors."""
    engine_logs: int = Field(default=10, ge=1)
    """How many logs of engines are stored."""
    engine_notes: Duration = timedelta(days=30)
    """Notes on an engine (its modules, adapters verified on it), since its last start."""
    low_disk_bytes: int = Field(default=LOW_DISK_BYTES, ge=0)
    """With less free space than this, `stacked status`, `stacked doctor` and the log warn."""


class ControlConfig(_Frozen):
    """A file without a base: a server that starts with nothing deployed.

    `group.name` names its records, `engine` holds defaults for what is deployed over HTTP.
    """

    group: GroupConfig = GroupConfig()
    engine: dict[str, Any] = {}
    server: ServerConfig = ServerConfig()
    retention: RetentionConfig = RetentionConfig()

    @model_validator(mode="after")
    def _members_have_a_base(self) -> ControlConfig:
        if self.group.members and not isinstance(self, Config):
            raise ValueError("group.members needs a base; set base.model, or leave the members out")
        return self


class Config(ControlConfig):
    """The whole file. `engine` holds vLLM's own option names and is checked by vLLM's parser."""

    base: BaseConfig


C = TypeVar("C", bound=ControlConfig)


def load(path: Path) -> Config:
    """Read, check and return the file's tree, its relative paths made absolute.

    Raises ConfigInvalid with the file, the key path and what was expected there.
    """
    return parse(_read(path), where=str(path), directory=path.resolve().parent)


def load_server(path: Path) -> ControlConfig:
    """`load` for a server, which may start without `base`, with nothing deployed."""
    tree, directory = _read(path), path.resolve().parent
    if not isinstance(tree, dict) or "base" in tree:
        return parse(tree, where=str(path), directory=directory)
    return _resolved(_checked(ControlConfig, tree, str(path)), directory)


def _read(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path}: cannot be read ({error})") from error
    try:
        return yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigInvalid(f"{path}: not valid YAML: {error}") from error


def parse(tree: object, *, where: str, directory: Path) -> Config:
    """Check a tree that came from `where`; paths in it are relative to `directory`."""
    if not isinstance(tree, dict):
        raise ConfigInvalid(
            f"{where}: expected a mapping with base, group, engine, server, retention"
        )
    config = _resolved(_checked(Config, tree, where), directory)
    model = resolve_path(config.base.model, directory)
    return config.model_copy(update={"base": config.base.model_copy(update={"model": model})})


def _checked(kind: type[C], tree: dict[str, Any], where: str) -> C:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigInvalid(_sentences(where, error)) from error


def _resolved(config: C, directory: Path) -> C:
    members = tuple(
        member.model_copy(update={"source": resolve_path(member.source, directory)})
        for member in config.group.members
    )
    roots = tuple(str((directory / root).resolve()) for root in config.server.adapter_roots)
    server = {"adapter_roots": roots, "auth": _resolved_auth(config.server.auth, directory)}
    return config.model_copy(
        update={
            "group": config.group.model_copy(update={"members": members}),
            "server": config.server.model_copy(update=server),
        }
    )


def _resolved_auth(auth: AuthConfig, directory: Path) -> AuthConfig:
    if auth.oci is None:
        return auth

    def absolute(text: str) -> str:
        return (
            text if "-----BEGIN" in text else str((directory / Path(text).expanduser()).resolve())
        )

    changed: dict[str, Any] = {"keys": {id: absolute(text) for id, text in auth.oci.keys.items()}}
    if auth.oci.directory is not None:
        changed["directory"] = absolute(auth.oci.directory)
    return auth.model_copy(update={"oci": auth.oci.model_copy(update=changed)})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def resolve_path(text: str, directory: Path) -> str:
    """Make a path absolute against `directory`; leave URLs, Hub ids and known names as they are.

    What begins with `.`, `/` or `~`, or has more than one slash, is a path. A single word or
    `org/name` is left to the caller, which tries a directory of that name first.
    """
    if _SCHEME.match(text):
        return text
    path = Path(text).expanduser()
    if path.is_absolute():
        return str(path)
    looks_like_name = _HUB_ID.fullmatch(text) or "/" not in text
    if looks_like_name and not text.startswith(".") and not (directory / path).exists():
        return text
    return str((directory / path).resolve())


def said_of(issue: Mapping[str, Any]) -> str:
    """The message of one of pydantic's errors: the validator's own, if it has one."""
    return str(issue["ctx"]["error"] if issue["type"] == "value_error" else issue["msg"])


def _sentences(where: str, error: ValidationError) -> str:
    lines = []
    for issue in error.errors(include_url=False):
        place = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in issue["loc"]
        ).lstrip(".")
        if issue["type"] == "extra_forbidden":
            said = f"unknown key; expected one of: {', '.join(_siblings(issue['loc']))}"
        else:
            said = said_of(issue)
            if not isinstance(issue["input"], dict):
                said += f" (got {str(issue['input'])[:80]!r})"
        lines.append(f"{where}: {place or 'file'}: {said}")
    return "\n".join(lines)


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed where an unknown one was found."""
    models: dict[str, type[_Frozen]] = {
        "base": BaseConfig,
        "group": GroupConfig,
        "server": ServerConfig,
        "retention": RetentionConfig,
    }
    nested: dict[str, type[_Frozen]] = {
        "members": MemberConfig,
        "oci": OciAuth,
        "auth": AuthConfig,
    }
    for name, model in nested.items():
        if name in location[:-1]:
            return list(model.model_fields)
    found = models.get(str(location[0])) if len(location) > 1 else None
    return list(found.model_fields) if found else ["base", *ControlConfig.model_fields]


class _UniqueKeys(yaml.SafeLoader):
    """YAML lets a later key silently replace an earlier one; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
