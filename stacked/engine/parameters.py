"""Which body parameters vLLM's app knows, and which of them it accepts and never reads.

vLLM ignores unknown parameters, so a misspelt `max_token` is never noticed, and also some that
OpenAI's clients send. tests/engine/test_surface.py compares these tables with the sources of
vLLM and of the client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, get_args

# Parameters that should change the answer and do not, with the values that request nothing, as
# `None` always does.
UNREAD: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "access_programs": ([],),
        "audio": (),
        "background_options": (),
        "best_of": (1,),
        "context_management": ([],),
        "container": (),
        "conversation": (),
        "early_stopping": (False,),
        "function_call": ("none", "auto"),  # without functions, there is none to call
        "functions": ([],),
        "guided_choice": (),
        "guided_decoding_backend": (),
        "guided_grammar": (),
        "guided_json": (),
        "guided_regex": (),
        "guided_whitespace_pattern": (),
        "image": (),
        "inference_geo": (),
        "max_tool_calls": (),
        "mcp_servers": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "speed": ("standard",),
        "verbosity": ("medium",),
        "web_search_options": (),
    }
)
# Where vLLM has a parameter of such a name, and reads it.
READ_AT: Mapping[str, frozenset[str]] = MappingProxyType({"/v1/systemone": frozenset({"audio"})})
# Those that should not: labels for OpenAI's own records and bills, and hints for speed.
INFORMATIVE = frozenset(
    {
        "cache_control",
        "diagnostics",
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "token_offsets",
        "user",
        "user_profile_id",
        "workspace_id",
    }
)


def is_unread(path: str, name: str, value: object) -> bool:
    """Whether a parameter requests something that would be ignored silently."""
    if name not in UNREAD or name in READ_AT.get(path, ()):
        return False
    return value is not None and value not in UNREAD[name]


def known_parameters(app: Any) -> dict[str, frozenset[str]]:
    """The body parameters that each POST path of vLLM's app knows, by path.

    Known are those that vLLM's own models and the OpenAI client's declare; paths without a declared
    body are left out.
    """
    known = {}
    for path, models in bodies(app):
        fields = _fields(models)
        if fields:
            known[path] = frozenset(fields | client_parameters(path))
    return known


def bodies(app: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Each POST path whose body is declared, with the models that it may be of."""
    for route in app.routes:
        body = getattr(route, "body_field", None)
        if body is not None and "POST" in route.methods:
            yield route.path, tuple(_models(body.field_info.annotation))


def _models(kind: Any) -> Iterator[Any]:
    """Every pydantic model of an annotation, through unions."""
    if hasattr(kind, "model_fields"):
        yield kind
    for part in get_args(kind):
        yield from _models(part)


def client_parameters(path: str) -> set[str]:
    """What OpenAI's client, or Anthropic's, declares for a path; nothing for other paths."""
    from anthropic.types.message_create_params import MessageCreateParamsBase
    from openai.types.chat import completion_create_params as chat
    from openai.types.completion_create_params import CompletionCreateParamsBase
    from openai.types.responses.response_create_params import ResponseCreateParamsBase

    clients = {
        "/v1/chat/completions": chat.CompletionCreateParamsBase,
        "/v1/completions": CompletionCreateParamsBase,
        "/v1/messages": MessageCreateParamsBase,
        "/v1/responses": ResponseCreateParamsBase,
    }
    client = clients.get(path)
    return set(client.__annotations__) | {"stream"} if client else set()


def _fields(models: tuple[Any, ...]) -> set[str]:
    """Names and aliases of the fields of pydantic models."""
    names: set[str] = set()
    for model in models:
        for name, field in model.model_fields.items():
            aliases = (field.alias, field.validation_alias)
            names |= {name, *(alias for alias in aliases if isinstance(alias, str))}
    return names
