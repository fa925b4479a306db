"""How a deployed group is served: by its environment, over this server's defaults.

The variables are those of the STACKED contract, as in `container.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from stacked.config import PredictEndpoint
from stacked.container import CORS_OPTIONS, boolean, served_names, tensor_parallel
from stacked.errors import ConfigInvalid
from stacked.steps import Silent
from stacked.vllm_flags import read_flags

DEFAULT_BASE_KEY = "base"

# The platform's limit on all names and values together.
MOST_BYTES = 2048

# A process of each kind of models takes some 50 MB before it holds one.
MOST_PROCESSES = 64

# Options that one server has once, whatever is deployed on it.
_SERVERS_OWN = ("host", "port", "model", *CORS_OPTIONS)
_IMPLIED = ("enable_lora", "served_model_name")
# Variables that are the server's own, or that one engine with one base has no use for.
_WITHOUT_EFFECT = (
    "PORT",
    "HEALTH_CHECK_PORT",
    "MODEL_DEPLOY_HEALTH_ENDPOINT",
    "MODEL",
    "MODEL_DEPLOY_ENABLE_STREAMING",
    "BASE_MODEL",
    "BASE_MODEL_FILE",
    "FT_MODEL",
    "WEB_CONCURRENCY",
)
_RUNTIME_UPDATES = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
_READ = (
    "PARAMS",
    "TENSOR_PARALLELISM",
    "MODEL_DEPLOY_PREDICT_ENDPOINT",
    _RUNTIME_UPDATES,
)


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """The options of an engine, and of serving it.

    `base_key` and `base_id` are the base's names in `--served-model-name`, empty if there are none.
    """

    engine: Mapping[str, Any]
    base_key: str = ""
    base_id: str = ""
    predict_endpoint: PredictEndpoint | None = None
    runtime_updates: bool = True
    """False: models are not loaded and removed one by one in this deployment."""
    processes: int = 1
    """Of each kind of models that vLLM does not serve."""
    notes: tuple[str, ...] = ()
    """What is accepted and ignored, in sentences."""


def read_settings(environ: Mapping[str, str], defaults: Mapping[str, Any]) -> ServingSettings:
    """The settings of an environment; `defaults` are engine options that it does not set.

    Raises ConfigInvalid naming the variable.
    """
    _check_size(environ)
    options = read_flags(environ.get("PARAMS", ""), where="PARAMS")
    if "lora_modules" in options:
        raise ConfigInvalid("PARAMS: --lora-modules: what is served is said by the model group")
    names = served_names(options)
    tensor_parallel(environ, options, Silent())
    notes = _notes(environ, options)
    for name in (*_SERVERS_OWN, *_IMPLIED):
        options.pop(name, None)
    allowed = boolean(environ, _RUNTIME_UPDATES)
    return ServingSettings(
        engine={**_plain(defaults), **options},
        base_key=names.get("key", ""),
        base_id=names.get("id", ""),
        predict_endpoint=_predict_endpoint(environ),
        runtime_updates=allowed is not False,
        notes=notes,
    )


def _check_size(environ: Mapping[str, str]) -> None:
    size = sum(len(name.encode()) + len(value.encode()) for name, value in environ.items())
    if size >= MOST_BYTES:
        raise ConfigInvalid(
            f"environmentVariables: {size} bytes; all names and values together are under "
            f"{MOST_BYTES}"
        )


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("-", "_"): value for name, value in options.items()}


def _notes(environ: Mapping[str, str], options: Mapping[str, Any]) -> tuple[str, ...]:
    idle = [name for name in environ if name in _WITHOUT_EFFECT]
    idle += [f"PARAMS --{name}" for name in _SERVERS_OWN if name in options]
    unknown = [name for name in environ if name not in (*_READ, *_WITHOUT_EFFECT)]
    notes = []
    if idle:
        notes.append(f"accepted and ignored, as this server decides them: {', '.join(idle)}")
    if unknown:
        notes.append(f"accepted and ignored, as nothing here reads them: {', '.join(unknown)}")
    return tuple(notes)


def _predict_endpoint(environ: Mapping[str, str]) -> PredictEndpoint | None:
    endpoint = environ.get("MODEL_DEPLOY_PREDICT_ENDPOINT", "").rstrip("/")
    if endpoint and endpoint not in get_args(PredictEndpoint):
        raise ConfigInvalid(
            "MODEL_DEPLOY_PREDICT_ENDPOINT: expected "
            f"{' or '.join(get_args(PredictEndpoint))}, got {endpoint[:80]!r}"
        )
    return cast("PredictEndpoint", endpoint) if endpoint else None


def settings_of(configuration: Mapping[str, Any], kind: str = "STACKED") -> ServingSettings:
    """The settings in a deployment's configuration, for a group of a kind. Raises ConfigInvalid."""
    environment = configuration.get("environment") or {}
    variables = environment.get("environmentVariables") or {}
    defaults = configuration.get("engine") or {}
    if kind != "STACKED":
        return _of_models(variables, defaults)
    found = read_settings(variables, defaults)
    return replace(found, base_key=found.base_key or configuration.get("base_key") or "")


def _of_models(environ: Mapping[str, str], defaults: Mapping[str, Any]) -> ServingSettings:
    """For models without vLLM; `defaults` stay for a later group with a base."""
    _check_size(environ)
    if "MULTI_MODEL_CONFIG" in environ:
        raise ConfigInvalid(
            "MULTI_MODEL_CONFIG: several language models in one container are not served here; "
            "deploy a STACKED group, which has one base and its adapters"
        )
    count = environ.get("WEB_CONCURRENCY") or "1"
    if not count.isdecimal() or not 1 <= int(count) <= MOST_PROCESSES:
        raise ConfigInvalid(
            f"WEB_CONCURRENCY: expected a number of processes from 1 to {MOST_PROCESSES}, "
            f"got {count[:80]!r}"
        )
    idle = [name for name in environ if name not in ("WEB_CONCURRENCY", _RUNTIME_UPDATES)]
    ignored = f"accepted and ignored, as nothing here reads them: {', '.join(idle)}"
    return ServingSettings(
        engine=_plain(defaults),
        runtime_updates=boolean(environ, _RUNTIME_UPDATES) is not False,
        processes=int(count),
        notes=(ignored,) if idle else (),
    )


def base_key(base_id: str, given: str | None, settings: ServingSettings) -> str:
    """The names of a group's base: the group's own, otherwise the deployment's.

    A LIVE update may have renamed it since `--served-model-name` was written. Raises ConfigInvalid
    where that names another base.
    """
    if settings.base_id and settings.base_id != base_id:
        raise ConfigInvalid(
            f"PARAMS: --served-model-name names model {settings.base_id}, and the base of the "
            f"group is {base_id}"
        )
    return given or settings.base_key or DEFAULT_BASE_KEY


def check_base_key(given: str | None, settings: ServingSettings) -> None:
    """Refuse an environment written for a base with another key. Raises ConfigInvalid."""
    if given and settings.base_key and settings.base_key != given:
        raise ConfigInvalid(
            f"PARAMS: --served-model-name calls the base {settings.base_key!r}, and the group "
            f"calls it {given!r}; it has one inference key"
        )
