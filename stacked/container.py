"""The container contract of a STACKED deployment: environment and model directory as a Config.

The variables are those that the platform and its clients set (see docs).

    PARAMS                             vLLM flags in one string
    MODEL                              the base: a directory, a Hub id or a known name
    PORT, HEALTH_CHECK_PORT            where to serve, and where to answer health probes
    MODEL_DEPLOY_PREDICT_ENDPOINT      what /predict means
    MODEL_DEPLOY_HEALTH_ENDPOINT       another path for /health
    TENSOR_PARALLELISM                 GPUs for one engine
    VLLM_ALLOW_RUNTIME_LORA_UPDATING   whether adapters may be loaded over HTTP
    STACKED_MODEL_DIR                  default /opt/ds/model/deployed_model
    STACKED_KEYS                       {"inference key": "OCID", …} as JSON
    STACKED_AUTH                       none (default), or bearer, oci or bearer,oci: who may call
    STACKED_LOG                        text (default), or json: all lines on standard output
    STACKED_FOREIGN_TOKENS             whether tokens that the base lacks are accepted

Accepted without effect, since the engine streams on request and there is one base:
MODEL_DEPLOY_ENABLE_STREAMING, BASE_MODEL, BASE_MODEL_FILE, FT_MODEL, WEB_CONCURRENCY.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from stacked.config import Config, PredictEndpoint, parse
from stacked.core import check_key, check_model_id
from stacked.errors import ConfigInvalid, StackedError
from stacked.steps import Progress, Silent
from stacked.vllm_flags import read_flags

MODEL_DIR = "/opt/ds/model/deployed_model"
# A by-reference member has its bucket prefix below its OCID; a bucket's prefix is not deeper.
_DEEPEST = 8

CORS_OPTIONS = ("allowed_origins", "allow_credentials", "allowed_methods", "allowed_headers")
"""vLLM's, in whose place is `server.cors`, which needs only the first."""

_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off", ""}

Environment = Mapping[str, str]


def is_container(environ: Environment) -> bool:
    """Whether this process was started as a container of a deployment, without a config file."""
    named = any(environ.get(name) for name in ("MODEL", "PARAMS", "STACKED_MODEL_DIR"))
    return named or Path(MODEL_DIR).is_dir()


def read_environment(environ: Environment, progress: Progress | None = None) -> Config:
    """The Config that the environment and the model directory describe.

    Raises ConfigInvalid naming the variable. What is present but not served is reported to
    `progress`.
    """
    tell = progress or Silent()
    options = read_flags(environ.get("PARAMS", ""), where="PARAMS")
    root = Path(environ.get("STACKED_MODEL_DIR") or MODEL_DIR)
    models = _models(root)
    base = _base(environ, options, root, models)
    names = served_names(options)
    if "id" not in names and (owner := _owner(Path(base))):
        names["id"] = owner
    keys = _keys(environ)
    _name_base(names, keys)
    members = _members(models, base, names.get("id"), keys, tell) + _lora_modules(options)
    server = _server(environ, options, root)
    tensor_parallel(environ, options, tell)
    for ours in ("enable_lora", "model", "host", "port", "lora_modules", "served_model_name"):
        options.pop(ours, None)
    server["cors"] = {"origins": _origins(options)}
    tree = {
        "base": {"model": base, **names},
        "group": {"name": "deployed", "members": members},
        "engine": options,
        "server": server,
    }
    return parse(tree, where="environment", directory=Path.cwd())


# --- the model directory -------------------------------------------------------------------------


def _models(root: Path) -> dict[str, Path]:
    """The directories of models below this one, by OCID."""
    if not root.is_dir():
        return {}
    return {path.name: path for path in _directories(root) if path.name.startswith("ocid1.")}


def find_model(directory: Path, file: str) -> Path | None:
    """The nearest directory at or below `directory` that holds `file`.

    Raises ConfigInvalid if two are equally near, as either could be meant.
    """
    level = [directory]
    for _ in range(_DEEPEST):
        holding = [path for path in level if (path / file).is_file()]
        if len(holding) > 1:
            raise ConfigInvalid(
                f"STACKED_MODEL_DIR: {directory} holds {file} more than once "
                f"({', '.join(str(path.relative_to(directory)) for path in holding)}); "
                "a member is one model"
            )
        if holding:
            return holding[0]
        level = [child for path in level for child in _directories(path)]
    return None


def _directories(path: Path) -> list[Path]:
    try:
        return sorted(child for child in path.iterdir() if child.is_dir())
    except OSError as error:
        raise ConfigInvalid(
            f"STACKED_MODEL_DIR: {path} cannot be read ({error.strerror})"
        ) from error


def _base(
    environ: Environment, options: Mapping[str, Any], root: Path, models: Mapping[str, Path]
) -> str:
    """MODEL (or `--model`), otherwise the only directory that holds a whole model."""
    if named := environ.get("MODEL") or options.get("model"):
        directory = Path(str(named))
        if not directory.is_absolute():
            return str(named)
        if not directory.is_dir():
            raise ConfigInvalid(f"MODEL: there is no directory {directory}")
        found = find_model(directory, "config.json")
        if found is None:
            raise ConfigInvalid(f"MODEL: {directory} holds no config.json, so no base model")
        return str(found)
    bases = [
        found
        for path in models.values()
        if find_model(path, "adapter_config.json") is None
        and (found := find_model(path, "config.json"))
    ]
    if len(bases) != 1:
        said = f"{len(bases)} base models" if bases else "no base model"
        raise ConfigInvalid(f"MODEL: not set, and {root} holds {said}; set it to the base")
    return str(bases[0])


def _owner(base: Path) -> str | None:
    """The OCID of the base's directory, if it has one."""
    for path in (base, *base.parents):
        if path.name.startswith("ocid1."):
            return _checked(check_model_id, path.name, f"MODEL: {path}")
    return None


def _members(
    models: Mapping[str, Path],
    base: str,
    base_id: str | None,
    keys: dict[str, list[str]],
    tell: Progress,
) -> list[dict[str, str]]:
    members: list[dict[str, str]] = []
    for name, path in models.items():
        if Path(base).is_relative_to(path) or name == base_id:
            continue
        source = find_model(path, "adapter_config.json")
        if source is None:
            tell.note(f"{path} holds no adapter_config.json; it is not served")
            continue
        member = {"id": _checked(check_model_id, name, str(path)), "source": str(source)}
        named = keys.pop(name, None)
        members += [{**member, "key": key} for key in named] if named else [member]
    if keys:
        missing = ", ".join(f"{key!r} ({ocid})" for ocid, them in keys.items() for key in them)
        raise ConfigInvalid(f"STACKED_KEYS: the model directory has no model for {missing}")
    return members


# --- the variables -------------------------------------------------------------------------------


def served_names(options: Mapping[str, Any]) -> dict[str, str]:
    """`--served-model-name`: an OCID is the base's id, another name its inference key."""
    given = options.get("served_model_name")
    if given is None:
        return {}
    found: dict[str, str] = {}
    for name in given if isinstance(given, list) else [given]:
        field = "id" if str(name).startswith("ocid1.") else "key"
        check = check_model_id if field == "id" else check_key
        checked = _checked(check, str(name), "PARAMS: --served-model-name")
        if field in found:
            raise ConfigInvalid(
                f"PARAMS: --served-model-name gives the base two names of one kind "
                f"({found[field]!r}, {checked!r}); it has one inference key and one OCID"
            )
        found[field] = checked
    return found


def _name_base(names: dict[str, str], keys: dict[str, list[str]]) -> None:
    """Take the base's own inference key out of STACKED_KEYS."""
    for key in keys.pop(names.get("id", ""), []):
        if names.setdefault("key", key) != key:
            raise ConfigInvalid(
                f"STACKED_KEYS: the base already has the key {names['key']!r}, and {key!r} here; "
                "it has one inference key"
            )


def _lora_modules(options: Mapping[str, Any]) -> list[dict[str, str]]:
    """`--lora-modules name=path …`, as vLLM reads them, as members of the group."""
    given = options.get("lora_modules", [])
    members = []
    for entry in given if isinstance(given, list) else [given]:
        if str(entry).startswith("{"):
            spec = _json_object(str(entry), "PARAMS: --lora-modules")
            name, source = spec.get("name"), spec.get("path")
        else:
            name, _, source = str(entry).partition("=")
        if not name or not source:
            raise ConfigInvalid(f"PARAMS: --lora-modules: expected name=path, got {entry!r}")
        members.append({"key": str(name), "source": str(source)})
    return members


def _origins(options: dict[str, Any]) -> Any:
    """`--allowed-origins`, a JSON list as vLLM reads it; all of CORS is taken out."""
    text, *_ = [str(options.pop(name, "[]")) for name in CORS_OPTIONS]
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigInvalid(
            f"PARAMS: --allowed-origins: expected a JSON list, got {text[:80]!r}"
        ) from error


def _keys(environ: Environment) -> dict[str, list[str]]:
    """STACKED_KEYS inverted: OCID to its inference keys."""
    text = environ.get("STACKED_KEYS", "").strip()
    keys: dict[str, list[str]] = {}
    for key, ocid in _json_object(text, "STACKED_KEYS").items() if text else ():
        owner = _checked(check_model_id, str(ocid), "STACKED_KEYS")
        keys.setdefault(owner, []).append(_checked(check_key, key, "STACKED_KEYS"))
    return keys


def _server(environ: Environment, options: Mapping[str, Any], root: Path) -> dict[str, Any]:
    port = _port(environ, "PORT", options.get("port", 8080))
    health = _port(environ, "HEALTH_CHECK_PORT", port)
    server: dict[str, Any] = {
        "auth": _auth(environ),
        "host": str(options.get("host", "0.0.0.0")),  # the platform probes from other machines
        "port": port,
        "adapter_roots": [str(root)],
    }
    if health != port:
        server["health_port"] = health
    if endpoint := environ.get("MODEL_DEPLOY_PREDICT_ENDPOINT", "").rstrip("/"):
        if endpoint not in get_args(PredictEndpoint):
            raise ConfigInvalid(
                "MODEL_DEPLOY_PREDICT_ENDPOINT: expected "
                f"{' or '.join(get_args(PredictEndpoint))}, got {endpoint!r}"
            )
        server["predict_endpoint"] = endpoint
    if path := environ.get("MODEL_DEPLOY_HEALTH_ENDPOINT"):
        if not path.startswith("/"):
            raise ConfigInvalid(
                f"MODEL_DEPLOY_HEALTH_ENDPOINT: expected a path that begins with /, got {path!r}"
            )
        server["health_path"] = path
    if (allowed := boolean(environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING")) is not None:
        server["runtime_updates"] = allowed
    if (foreign := boolean(environ, "STACKED_FOREIGN_TOKENS")) is not None:
        server["foreign_tokens"] = foreign
    if form := environ.get("STACKED_LOG"):
        server["log"] = form
    return server


def _auth(environ: Environment) -> dict[str, bool]:
    """The platform checks signatures before it passes a request on; elsewhere, set another."""
    text = (environ.get("STACKED_AUTH") or "none").strip().lower()
    kinds = {part.strip() for part in text.split(",")}
    if kinds != {"none"} and not kinds <= {"bearer", "oci"}:
        raise ConfigInvalid(
            f"STACKED_AUTH: expected none, bearer, oci or bearer,oci, got {text[:80]!r}"
        )
    return dict.fromkeys(sorted(kinds), True)


def tensor_parallel(environ: Environment, options: dict[str, Any], tell: Progress) -> None:
    text = environ.get("TENSOR_PARALLELISM", "").strip()
    if not text:
        return
    if not text.isdigit() or int(text) < 1:
        raise ConfigInvalid(f"TENSOR_PARALLELISM: expected a number of GPUs, got {text!r}")
    size = options.setdefault("tensor_parallel_size", int(text))
    if size != int(text):
        tell.note(f"TENSOR_PARALLELISM={text} gives way to PARAMS, which says {size}")


def _port(environ: Environment, name: str, default: Any) -> int:
    text = str(environ.get(name) or default).strip()
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ConfigInvalid(f"{name}: expected a port from 1 to 65535, got {text!r}")
    return int(text)


def boolean(environ: Environment, name: str) -> bool | None:
    if name not in environ:
        return None
    text = environ[name].strip().lower()
    if text not in _TRUE | _FALSE:
        raise ConfigInvalid(f"{name}: expected true or false, got {environ[name]!r}")
    return text in _TRUE


def _checked(check: Callable[[str], str], text: str, where: str) -> str:
    """The text as a key or a model id. Raises ConfigInvalid."""
    try:
        return check(text)
    except (ValueError, StackedError) as error:
        raise ConfigInvalid(f"{where}: {error}") from error


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigInvalid(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ConfigInvalid(f"{where}: expected a JSON object, got {text[:80]!r}")
    return value
