"""Where a request goes: which paths name a model, what they become, which error shape they have.

A table and pure functions over canonical paths (see `canonical`); it must not read bodies or call
anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

PREFIX = "/20190101"
"""Of the control plane: the version of OCI's API."""

# `(?s)`, here and below: a line end in a name is a character as any other.
# Its collections, which scripts also request without the version: OCI's own pages omit it.
_COLLECTIONS = re.compile(
    r"(?s)/(model(s|Groups|GroupVersionHistory|VersionSets|Deployments|DeploymentShapes)"
    r"|workRequests|containers|projects|computeTargets)(/.*)?"
)
# The verbs of a container for one model, which are not the catalogue's. Keys may have slashes, so
# what is below a model of the catalogue is recognised by its name.
_BELOW_A_MODEL = r"[^/]+/(actions|artifact|customMetadata|definedMetadata|provenance)(/|$)"
_OF_ONE_MODEL = re.compile(
    rf"(?s)(POST|DELETE) /models/(?!{_BELOW_A_MODEL}).+"
    r"|[A-Z]+ /models/.+/(health|predict|predictWithResponseStream)"
)

# Paths of vLLM's app whose POST body names a model.
_MODEL_PATHS = re.compile(
    r"(?s)/(v1|v2)/.+|/(tokenize|detokenize|invocations|generative_scoring|pooling|classify|score"
    r"|rerank)|/inference/v1/generate"
)
# Its other public paths. What is in neither list is administrative (pausing,
# scaling, sleeping, aborting others' requests) and is not reachable.
_OPEN_PATHS = re.compile(r"/(metrics|version|load)")
FEEDBACK = "/v1/feedback"
# Our own among vLLM's.
_OUR_PATHS = frozenset({FEEDBACK, "/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
# A platform's probes, which reveal nothing about models: nobody has to sign them.
HEALTH_PATHS = frozenset(
    {
        "/health",
        "/health/live",
        "/health/ready",
        "/ping",
        "/v2/health/live",
        "/v2/health/ready",
    }
)
"""A platform's health probes, which reveal nothing about models."""

_STREAM = "predictWithResponseStream"
_VERBS = f"predict|{_STREAM}"
_PREDICT = re.compile(rf"(?s)(?:/models?/(?P<model>.+))?/(?P<verb>{_VERBS})")
# Azure's, whose deployments are inference keys here.
_AZURE_OPENAI = (
    r"/openai/(?:deployments/(?P<model>[^/]+)/)?"
    r"(?P<rest>chat/completions|completions|embeddings|responses)"
)
_AZURE = re.compile(rf"(?s){_AZURE_OPENAI}")
_OWN = re.compile(r"/(20190101|stacked)/")
_LISTING = re.compile(r"(?s)/v1/models(/.+)?")
# The Open Inference Protocol's; what else is below /v2 is Cohere's, of vLLM's app.
_TENSORS = re.compile(r"(?s)/v2(/models(/.+)?|/health/(live|ready))?")
_INFER = re.compile(r"(?s)/v2/models/(?P<model>.+)/infer")

# What a caller may do who only uses models: everything else, and every path that a later vLLM adds,
# is for administrators until it stands here.
_SERVING = re.compile(
    rf"(?s)POST (?:(?:/models?/.+)?/(?:{_VERBS})|{_AZURE_OPENAI}"
    r"|/v1/(?:chat/completions(?:/batch)?|completions|responses|messages)(?:/render)?"
    r"|/v1/(?:chat/completions|completions)/derender"
    r"|/v1/(?:feedback|messages/count_tokens|systemone|embeddings|score|rerank)"
    r"|/v2/(?:embed|rerank|models/.+/infer)"
    r"|/(?:inference/v1/generate|invocations|tokenize|detokenize|generative_scoring)"
    r"|/(?:pooling|classify|score|rerank))"
    r"|(?:GET|HEAD) (?:/v1/models(?:/.+)?|/version|/v2(?:/models(?:/.+)?)?)"
)
# What tells of other callers' requests, and so of models that one caller may not know of.
_OF_ALL = re.compile(
    r"(?:GET|HEAD) (?:/metrics|/load|/v1/responses/[^/]+)|POST /v1/responses/[^/]+/cancel"
)

# Deployments are called by OCIDs; the other names are first parts of paths of our own.
_OF_DEPLOYMENT = re.compile(
    rf"(?s)/(?!(?:v1|v2|models?|{_VERBS}|stacked|20190101)/)(?P<id>[^/]+)(?P<rest>/(?:{_VERBS})(?:/.*)?)"
)
_BELOW_PREDICT = re.compile(rf"(?s)/(?P<verb>{_VERBS})(?P<rest>/.+)")


class Inner(NamedTuple):
    """A path without the prefix of OCI's deployments."""

    deployment: str | None
    path: str
    below: str | None = None
    """The verb that the path was below: `predict` or `predictWithResponseStream`."""


@dataclass(frozen=True, slots=True)
class Target:
    """One request's way. `path` None: chosen from the header `route` or the body (`/predict`)."""

    path: str | None
    model: str | None = None
    """The model that the path itself names."""
    stream: bool = False
    """Whether the path itself requests a stream."""
    plain: bool = False
    """Whether errors are `{"code", "message"}`; otherwise OpenAI's."""
    oci: bool = False
    """Whether it is `/predict` or below it, with the headers and the leniency of OCI's clients."""
    tensors: bool = False
    """Whether it is of the Open Inference Protocol, which vLLM does not speak."""


class Place(NamedTuple):
    """All that a method and a path as it was sent say."""

    deployment: str | None
    path: str
    app_path: str
    """See `app_path`."""
    target: Target | None
    plain: bool
    """Whose error shape it has; see `Target.plain`."""


@lru_cache(maxsize=256)
def place_of(method: str, raw: str) -> Place:
    """Where a request goes. The same few paths are sent again and again."""
    deployment, path, below = inner_path(canonical(raw))
    path = versioned(method, path)
    target = model_target(method, path, below)
    plain = target.plain if target else is_plain(path)
    return Place(deployment, path, app_path(path), target, plain)


def canonical(raw: str) -> str:
    """The path that was sent, each part decoded but for the `/` and `%` in it.

    So one path has one form, and a `/` in a key is not a separator. A slash at the end
    or doubled at the beginning means nothing.
    """
    return "/" + "/".join(map(_canonical_part, raw.strip("/").split("/")))


def _canonical_part(part: str) -> str:
    return unquote(part).replace("%", "%25").replace("/", "%2F") if "%" in part else part


def app_path(path: str) -> str:
    """The path as its app gets it: decoded where nothing in it is a name with a `/` of its own.

    Only below a first part that stays what it is: what a path means is decided by its one form.
    """
    return unquote(path) if _OWN.match(path) else path


def inner_path(path: str) -> Inner:
    """The deployment that a path is below, if any, and the path as it is without.

    What follows `/predict/` is a path of vLLM's own: `/{id}/predict/v1/models` is `/v1/models`.
    """
    deployment = None
    if match := _OF_DEPLOYMENT.fullmatch(path):
        deployment, path = unquote(match["id"]), match["rest"]
    if (match := _BELOW_PREDICT.fullmatch(path)) and _is_below_predict(match["rest"]):
        return Inner(deployment, match["rest"], match["verb"])
    return Inner(deployment, path)


def _is_below_predict(path: str) -> bool:
    found = (_MODEL_PATHS.fullmatch(path), _OPEN_PATHS.fullmatch(path))
    return any(found) or path in HEALTH_PATHS


def model_target(method: str, path: str, below: str | None = None) -> Target | None:
    """The target of a request that runs a model; None for every other request."""
    if method != "POST":
        return None
    if match := _PREDICT.fullmatch(path):
        model = match["model"]
        return Target(
            path=None,
            model=unquote(model) if model else None,
            stream=match["verb"] == _STREAM,
            plain=True,
            oci=True,
        )
    if match := _AZURE.fullmatch(path):
        model = match["model"]
        return Target(f"/v1/{match['rest']}", unquote(model) if model else None)
    if match := _INFER.fullmatch(path):
        return Target(path=None, model=unquote(match["model"]), plain=True, tensors=True)
    if path not in _OUR_PATHS and _MODEL_PATHS.fullmatch(path):
        return Target(path=path, stream=below == _STREAM, oci=below is not None)
    return None


def is_open(method: str, path: str) -> bool:
    """Whether this reads what clients of models may read, without running one."""
    if method not in {"GET", "HEAD", "OPTIONS"}:
        return False
    return path.startswith("/v1/") or _OPEN_PATHS.fullmatch(path) is not None


def is_serving(method: str, path: str, *, of_all: bool) -> bool:
    """Whether a request to a canonical path runs a model, or reads what clients of models read.

    `of_all`: whether also what tells of every model and of other callers' requests.
    """
    line = f"{method} {path}"
    return bool(_SERVING.fullmatch(line) or (of_all and _OF_ALL.fullmatch(line)))


def is_listing(path: str) -> bool:
    """Whether a path lists served models, or is of one: our own, as each caller sees them."""
    return _LISTING.fullmatch(path) is not None


def is_tensors(path: str) -> bool:
    """Whether a path is of the Open Inference Protocol, whose errors have a text in `error`."""
    return _TENSORS.fullmatch(path) is not None


def is_plain(path: str) -> bool:
    """Whose error shape a path has that runs no model."""
    return path != "/v1" and not path.startswith("/v1/")


def versioned(method: str, path: str) -> str:
    """A path of the control plane with its version, also where it came without; else as it is."""
    if _COLLECTIONS.fullmatch(path) is None or _OF_ONE_MODEL.fullmatch(f"{method} {path}"):
        return path
    return PREFIX + path


def is_control(path: str) -> bool:
    """Whether a path is the control plane's, where errors have OCI's codes."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")
