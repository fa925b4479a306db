"""Where a request goes: which paths name a model, what they become, whose error shape they have.

A table and pure functions; it must not read bodies or call anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

# Paths of vLLM's app whose POST body names a model.
_MODEL_PATHS = re.compile(
    r"/(v1|v2)/.+|/(tokenize|detokenize|invocations|generative_scoring|pooling|classify|score"
    r"|rerank)|/inference/v1/generate"
)
# Its other paths that are open to everyone. What is in neither list is administrative (pausing,
# scaling, sleeping, aborting others' requests) and is not reachable.
_OPEN_PATHS = re.compile(r"/(metrics/?|version|load|docs|docs/oauth2-redirect|redoc)")
_LORA_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})

_PREDICT = re.compile(r"(?:/models?/(?P<model>[^/]+))?/(?P<verb>predict|predictWithResponseStream)")

# Deployments are called by OCIDs; the other names are first parts of paths of our own.
_BELOW = re.compile(
    r"/(?!(?:v1|v2|models?|predict|stacked|20190101)/)(?P<id>[^/]+)"
    r"(?P<rest>/(?:predict|predictWithResponseStream)(?:/.*)?)"
)


@dataclass(frozen=True, slots=True)
class Target:
    """One request's way. `path` None: chosen from the body (`/predict`)."""

    path: str | None
    model: str | None = None
    """The model that the path itself names."""
    stream: bool = False
    """Whether the path itself asks for a stream."""
    plain: bool = False
    """Whether errors are `{"code", "message"}`; else OpenAI's."""


def inner_path(path: str) -> tuple[str | None, str]:
    """The deployment that a path is below, if any, and the path as it is without.

    What follows `/predict/` is a path of vLLM's own: `/{id}/predict/v1/models` is `/v1/models`.
    """
    deployment = None
    if match := _BELOW.fullmatch(path):
        deployment, path = unquote(match["id"]), match["rest"]
    if path.startswith("/predict/v1/"):
        path = path.removeprefix("/predict")
    return deployment, path


def model_target(method: str, path: str) -> Target | None:
    """The target of a request that runs a model; None for every other request."""
    if method != "POST":
        return None
    match = _PREDICT.fullmatch(path)
    if match:
        model = match["model"]
        return Target(
            path=None,
            model=unquote(model) if model else None,
            stream=match["verb"] == "predictWithResponseStream",
            plain=True,
        )
    if path not in _LORA_PATHS and _MODEL_PATHS.fullmatch(path):
        return Target(path=path)
    return None


def is_open(method: str, path: str) -> bool:
    """Whether vLLM's app answers this request as it is."""
    if method not in {"GET", "HEAD", "OPTIONS"}:
        return False
    return path.startswith("/v1/") or _OPEN_PATHS.fullmatch(path) is not None


def predict_path(tree: dict[str, object], configured: str | None) -> str:
    """What `/predict` means for this body: `messages` is chat, `prompt` is completions."""
    if "messages" in tree:
        return "/v1/chat/completions"
    if "prompt" in tree or configured is None:
        return "/v1/completions"
    return configured


def is_plain(path: str) -> bool:
    """Whose error shape a path has that runs no model."""
    return not path.startswith("/v1/")
