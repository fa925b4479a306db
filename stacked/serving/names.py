"""Every place where a request can name its model, or the unit that it is of in an experiment.

Pure. Each place is resolved by admission, and two that differ are refused; in a place that vLLM
reads and this list lacks, a model would be named and not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stacked.callers import ANYONE, NOBODY, caller_of
from stacked.config import UnitKind
from stacked.core import name_from_bytes
from stacked.errors import ParameterInvalid

# SageMaker's name an adapter, the second on registration alone; vLLM's app reads the first.
MODEL_HEADERS = (
    "model-key",
    "model-ocid",
    "x-amzn-sagemaker-adapter-identifier",
    "x-amzn-sagemaker-adapter-alias",
)
# Fields that hold a whole request, with a `model` of its own.
NESTED_REQUESTS = ("chat_request", "completion_request")

UNIT_HEADER = "experiment-unit"
# OpenAI's two fields for who its client asks for; Anthropic's is below `metadata`.
_USER_FIELDS = ("user", "safety_identifier")


def names_of(
    path_model: str | None, headers: Iterable[tuple[bytes, bytes]], tree: Mapping[str, Any]
) -> dict[str, str]:
    """Place -> name, from the path, the raw headers and the body.

    Raises ParameterInvalid if a model in the body is not a string.
    """
    names: dict[str, str] = {}
    for raw_name, value in headers:
        header = raw_name.decode("latin-1").lower()
        if header in MODEL_HEADERS:
            place, at = f"header {header}", 1
            while place in names:
                at += 1
                place = f"header {header} ({at})"
            names[place] = name_from_bytes(value.strip())
    if path_model is not None:
        names["path"] = path_model
    for place, holder in (("body", tree), *((f"body {n}", tree.get(n)) for n in NESTED_REQUESTS)):
        model = holder.get("model") if isinstance(holder, Mapping) else None
        if model is None:
            continue
        if not isinstance(model, str):
            raise ParameterInvalid(f"model must be a string, not {type(model).__name__}")
        names[f"{place} model"] = model
    return names


def unit_of(kind: UnitKind, scope: Mapping[str, Any], tree: Mapping[str, Any]) -> str | None:
    """The unit of a request with this scope and body; None if it has none of this kind."""
    if kind == "credential":
        caller = caller_of(scope)
        return None if caller in (ANYONE, NOBODY) else caller.id
    if kind == "header":
        sent = (value for name, value in scope["headers"] if name.lower() == UNIT_HEADER.encode())
        return name_from_bytes(next(sent, b"").strip()) or None
    metadata = tree.get("metadata")
    places = [*map(tree.get, _USER_FIELDS)]
    places.append(metadata.get("user_id") if isinstance(metadata, Mapping) else None)
    return next((text for text in places if isinstance(text, str) and text), None)
