"""vLLM's own options, from the `engine:` mapping of a config to what vLLM parses."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from stacked.engine.support import serve_parser, validate_options
from stacked.errors import EngineOptionInvalid

# Options that Stacked sets itself, and what a user sets instead.
_OURS = {
    "model": "set base.model instead",
    "model_tag": "set base.model instead",
    "served_model_name": "set base.key instead",
    "host": "set server.host instead",
    "port": "set server.port instead",
    "uds": "Stacked serves on host and port only",
    "root_path": "Stacked serves at the root",
    "lora_modules": "list adapters under group.members instead",
    "default_mm_loras": "list adapters under group.members instead",
    "api_server_count": "Stacked is one server process; run more of them behind a balancer",
    "headless": "Stacked is one server process",
    "grpc": "Stacked serves HTTP",
    "config": "this file is the configuration",
    "allowed_origins": "set server.cors.origins instead",
    "allow_credentials": "no credential of a browser's own is taken; set server.cors.origins",
    "allowed_methods": "server.cors.origins allows all of them",
    "allowed_headers": "server.cors.origins allows all of them",
    "middleware": "vLLM's app is behind Stacked's own admission",
}


def parse_options(options: Mapping[str, Any]) -> argparse.Namespace:
    """Give vLLM's own parser the options and return what `vllm serve` would see.

    Names may be written with underscores or hyphens. True and False are flags, a list is several
    values, a mapping is JSON. Raises EngineOptionInvalid with vLLM's message.
    """
    parser = serve_parser()
    known = {
        option.removeprefix("--"): action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    words: list[str] = []
    for name, value in options.items():
        words += _words(name, value, known)

    def refuse(message: str) -> NoReturn:
        raise EngineOptionInvalid(f"engine: vLLM says: {message}")

    parser.error = refuse
    try:
        args: argparse.Namespace = parser.parse_args(words)
        validate_options(args)
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        raise EngineOptionInvalid(f"engine: vLLM says: {error}") from error
    return args


def check_names(options: Mapping[str, Any]) -> None:
    """Refuse options that Stacked sets itself, without importing vLLM."""
    for name in options:
        plain = name.replace("-", "_")
        if plain in _OURS:
            raise EngineOptionInvalid(f"engine.{name}: not set here; {_OURS[plain]}")
        if plain == "enable_lora" and options[name] in (False, "false", "False"):
            raise EngineOptionInvalid(f"engine.{name}: adapters are what Stacked serves; remove it")


def _words(name: str, value: Any, known: Mapping[str, argparse.Action]) -> list[str]:
    flag = name.replace("_", "-")
    if flag not in known:
        near = difflib.get_close_matches(flag, known, n=3)
        hint = f"; did you mean {', '.join(n.replace('-', '_') for n in near)}?" if near else ""
        raise EngineOptionInvalid(f"engine.{name}: vLLM has no such option{hint}")
    if value is None:
        return []
    if isinstance(value, bool):
        if value:
            return [f"--{flag}"] if _is_flag(known[flag]) else [f"--{flag}", "true"]
        if f"no-{flag}" in known:
            return [f"--no-{flag}"]
        return [] if _is_flag(known[flag]) else [f"--{flag}", "false"]
    if isinstance(value, Mapping):
        return [f"--{flag}", json.dumps(value)]
    if isinstance(value, list | tuple):
        return [f"--{flag}", *(str(item) for item in value)]
    return [f"--{flag}={value}"]


def _is_flag(action: argparse.Action) -> bool:
    return action.nargs == 0
