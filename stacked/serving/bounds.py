"""How much one request to a model may ask for: a table of limits, applied before vLLM parses.

By the names of fields, whatever the surface: where two have a field of one name, it means the same.
What has the wrong type counts nothing here, as vLLM refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import inf, isnan
from typing import Any

from pydantic_core import to_json

from stacked.config import LimitsConfig
from stacked.errors import ParameterOverLimit
from stacked.serving.names import NESTED_REQUESTS

Tree = Mapping[str, Any]

# Fields that hold further parameters of the request.
_NESTED = (*NESTED_REQUESTS, "sampling_params")
# What is sent to the engine once for each element. Lists of token ids, and of a chat's messages,
# are one prompt.
_PROMPTS = ("prompt", "input", "messages", "token_ids")
_PAIRS = ("data_1", "data_2", "text_1", "text_2")
_BATCHES = ("inputs", "texts", "images", "documents", "items", "queries", *_PAIRS)
_SEVERAL = frozenset({*_PROMPTS, *_BATCHES})
_TEXTS = (*_PROMPTS, *_BATCHES, "system", "instructions", "query", "suffix")
_TEXT_OF_A_MESSAGE = ("content", "text", "arguments", "output")
_CHATS = ("messages", "input", "inputs", "system")


def _number(value: Any) -> float:
    """As pydantic reads numbers for vLLM: also from text."""
    if isinstance(value, bool):
        return 0
    try:
        found = float(value)
    except OverflowError:
        return inf
    except (TypeError, ValueError):
        return 0
    return 0 if isnan(found) else found


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list | dict) else 1 if isinstance(value, str) else 0


def _longest(value: Any) -> int:
    texts = value if isinstance(value, list) else [value]
    return max((len(text) for text in texts if isinstance(text, str)), default=0)


def _size(value: Any) -> int:
    return len(to_json(value)) if isinstance(value, list | dict | str) else 0


def _is_one(value: Any) -> bool:
    """Whether it is one prompt: text, token ids, or messages."""
    return not isinstance(value, list) or not value or isinstance(value[0], int | float | dict)


def _messages(value: Any) -> Iterator[dict[str, Any]]:
    """Those of a chat, or of each chat of a batch."""
    if not isinstance(value, list) or not value:
        return
    if isinstance(value[0], dict):
        yield from (each for each in value if isinstance(each, dict))
    elif isinstance(value[0], list):
        for chat in value:
            yield from _messages(chat)


def _count_messages(value: Any) -> int:
    return sum(1 for _ in _messages(value))


def _parts(value: Any) -> int:
    contents = (each.get("content") for each in _messages(value))
    return sum(len(content) for content in contents if isinstance(content, list))


def _characters(value: Any) -> int:
    """Of text wherever it stands; a token's id counts as one. Images and the like count nothing."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_characters(value.get(name)) for name in _TEXT_OF_A_MESSAGE)
    if not isinstance(value, list):
        return 0
    if value and isinstance(value[0], int | float):
        return len(value)
    return sum(map(_characters, value))


# The limit, the fields that it bounds, and how much of it a value is.
_BOUNDS: tuple[tuple[str, tuple[str, ...], Callable[[Any], float]], ...] = (
    ("n", ("n", "best_of"), _number),
    (
        "max_tokens",
        ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens"),
        _number,
    ),
    ("logprobs", ("logprobs", "top_logprobs", "prompt_logprobs"), _number),
    ("messages", _CHATS, _count_messages),
    ("content_parts", _CHATS, _parts),
    ("prompt_characters", _TEXTS, _characters),
    ("stop", ("stop", "stop_sequences"), _count),
    ("stop_characters", ("stop", "stop_sequences", "bad_words"), _longest),
    (
        "token_choices",
        ("logit_bias", "allowed_token_ids", "stop_token_ids", "logprob_token_ids", "bad_words"),
        _count,
    ),
    ("tools", ("tools",), _count),
    (
        "schema_bytes",
        (
            "tools",
            "response_format",
            "structured_outputs",
            "text",
            "output_config",
            "chat_template",
            "chat_template_kwargs",
            "vllm_xargs",
        ),
        _size,
    ),
)


_BY_FIELD: dict[str, list[tuple[str, Callable[[Any], float]]]] = {}
for _limit, _fields, _measure in _BOUNDS:
    for _field in _fields:
        _BY_FIELD.setdefault(_field, []).append((_limit, _measure))


def check_bounds(tree: Tree, limits: LimitsConfig) -> int:
    """How many sequences the engine gets for a request. Raises ParameterOverLimit."""
    trees = [tree, *(inner for name in _NESTED if isinstance(inner := tree.get(name), dict))]
    for field, value in (pair for each in trees for pair in each.items()):
        for limit, measure in _BY_FIELD.get(field, ()):
            most = getattr(limits, limit)
            if most is not None and value is not None and (found := measure(value)) > most:
                raise _over(field, found, limit, most)
    sequences = max(map(_sequences, trees))
    most = min(limits.sequences_per_request, limits.share_of(limits.sequences))
    if sequences > most:
        raise _over("prompts and n together", sequences, "sequences_per_request", most)
    return sequences


def _sequences(tree: Tree) -> int:
    prompts = 1
    for name, value in tree.items():
        several = isinstance(value, list) and name in _SEVERAL
        if several and (name in _BATCHES or not _is_one(value)):
            prompts = max(prompts, len(value))
    return prompts * max(1, int(_number(tree.get("n"))))


def _over(field: str, found: float, limit: str, most: int) -> ParameterOverLimit:
    return ParameterOverLimit(
        f"{field}: {found:.0f} is over this server's limit of {most} ({limit}); send less, or have "
        f"server.limits.{limit} raised",
        limit,
    )
