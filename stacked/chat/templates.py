"""The chat templates of an adapter, read from the files next to it, in canonical form."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacked.errors import AdapterConfigInvalid

CHAT_FILE = "tokenizer_config.json"
"""Where transformers saves templates and special tokens; the store keeps only these of it."""
TEMPLATE_FILE = "chat_template.jinja"
SPECIAL_FILE = "special_tokens_map.json"
MORE_TEMPLATES = "additional_chat_templates"

_DEFAULT, _TOOLS = "default", "tool_use"
# Tokenizer classes without defaults: what their config leaves out is not set. Others have
# defaults, which are the base's.
_BARE = ("PreTrainedTokenizerFast", "TokenizersBackend")


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """Templates by name, and the special tokens that they read.

    A token that is None is not set, as in the adapter's own tokenizer; an absent one is the base's.
    """

    templates: Mapping[str, str]
    tokens: Mapping[str, str | None]

    def chosen(self, name: str | None, *, tools: bool) -> str | None:
        """The template of that name, or the one transformers chooses; None if there is none."""
        if name is not None:
            return self.templates.get(name)
        if tools and _TOOLS in self.templates:
            return self.templates[_TOOLS]
        return self.templates.get(_DEFAULT)

    def reading(self, variables: Collection[str]) -> ChatTemplates:
        """The same with only the tokens among these variables."""
        tokens = {name: token for name, token in self.tokens.items() if name in variables}
        return ChatTemplates(self.templates, tokens)

    def stored(self) -> bytes:
        """A tokenizer_config.json as transformers writes it, in canonical form: this is hashed."""
        rows = [{"name": name, "template": text} for name, text in sorted(self.templates.items())]
        value = self.templates[_DEFAULT] if [*self.templates] == [_DEFAULT] else rows
        tree = {**self.tokens, "chat_template": value}
        return (json.dumps(tree, indent=2, sort_keys=True) + "\n").encode("ascii")


def stored_chat(directory: Path) -> ChatTemplates | None:
    """The chat templates of a stored adapter, None if it has none of its own."""
    return read_chat(directory) if (directory / CHAT_FILE).is_file() else None


def read_chat(directory: Path) -> ChatTemplates | None:
    """Read them as transformers does: template files take precedence over tokenizer_config.json.

    Raises AdapterConfigInvalid for a file that transformers did not write.
    """
    config = read_object(directory / CHAT_FILE)
    templates = _from_files(directory) or _from_config(config)
    if not templates:
        return None
    if not templates.keys() & {_DEFAULT, _TOOLS}:
        raise AdapterConfigInvalid(
            f"{CHAT_FILE}: chat_template has {', '.join(sorted(templates))} and no {_DEFAULT}, "
            "so that none would be used; name one of them so"
        )
    return ChatTemplates(templates, read_tokens(directory, config))


def read_tokens(directory: Path, config: Mapping[str, Any]) -> dict[str, str | None]:
    """The named special tokens (`eos_token`, …) of a tokenizer; None: not set."""
    named = dict(config)
    if "added_tokens_decoder" not in config:  # an older file, which overrides the config
        named |= read_object(directory / SPECIAL_FILE)
    for more in ("extra_special_tokens", "model_specific_special_tokens"):
        if isinstance(named.get(more), dict):
            named |= named[more]
    tokens: dict[str, str | None] = {}
    if config.get("tokenizer_class") in _BARE:
        tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"))
    for name, value in named.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and (content is None or isinstance(content, str)):
            tokens[name] = content
    return tokens


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file. Raises AdapterConfigInvalid."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise AdapterConfigInvalid(
            f"{path.name}: not valid JSON ({error}); save the tokenizer again, or remove the file"
        ) from error
    if not isinstance(value, dict):
        raise AdapterConfigInvalid(f"{path.name}: expected a JSON object; remove it or save again")
    return value


def _from_files(directory: Path) -> dict[str, str]:
    files = {file.name.removesuffix(".jinja"): file for file in _more(directory)}
    if (directory / TEMPLATE_FILE).is_file():
        files[_DEFAULT] = directory / TEMPLATE_FILE
    return {name: _text(file) for name, file in files.items()}


def _more(directory: Path) -> list[Path]:
    return sorted((directory / MORE_TEMPLATES).glob("*.jinja"))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise AdapterConfigInvalid(f"{file.name}: not UTF-8 ({error}); save it again") from error


def _from_config(config: Mapping[str, Any]) -> dict[str, str]:
    value = config.get("chat_template")
    if isinstance(value, str):
        return {_DEFAULT: value} if value else {}
    rows: Any = value or ()
    try:
        found = {row["name"]: row["template"] for row in rows}
    except (TypeError, KeyError) as error:
        raise AdapterConfigInvalid(
            f"{CHAT_FILE}: chat_template is neither a text nor a list of name and template"
        ) from error
    if not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise AdapterConfigInvalid(f"{CHAT_FILE}: a name or template in chat_template is no text")
    return found
