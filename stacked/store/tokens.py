"""Whether an adapter's tokenizer has tokens that its base's lacks, or other ones under their ids.

It must not know templates. What counts is what a prompt can become: texts and ids of tokens, and
how text is split. Padding, truncation, lengths and a token that only pads do not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stacked.chat.templates import CHAT_FILE, read_object, read_tokens
from stacked.errors import AdapterConfigInvalid, TokensDiffer
from stacked.store.files import ADDED_FILE, TOKENIZER_FILE
from stacked.store.text import quoted

_SHOWN = 5
# Parts of a tokenizer.json that decide how text is split, beside the vocabulary.
_SPLITTING = ("normalizer", "pre_tokenizer")


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenizer as far as it is known from its files.

    `whole`: whether `ids` has all of its tokens, not just those that were added to a vocabulary.
    `splitting` tells two ways of splitting text apart, where it is known.
    """

    ids: Mapping[str, int]
    added: frozenset[str]
    special: Mapping[str, str | None]
    whole: bool = False
    splitting: str = ""


def check_tokens(directory: Path, base: Path | None, *, foreign: bool) -> tuple[str, ...]:
    """Compare the tokenizer beside an adapter with its base's; warnings about what is lost.

    `foreign` accepts tokens that the base lacks. Raises TokensDiffer, AdapterConfigInvalid.
    """
    brought = read_tokenizer(directory)
    there = _base_tokens(base, _stamp(base)) if brought is not None and base is not None else None
    if brought is None or there is None:
        return ()
    return tuple(_compared(brought, there, foreign=foreign))


def read_tokenizer(directory: Path) -> Tokens | None:
    """What the files of a tokenizer say; None where there are none. Raises AdapterConfigInvalid."""
    config = read_object(directory / CHAT_FILE)
    special = read_tokens(directory, config)
    ids = dict(_beside(directory, config))
    try:
        data = (directory / TOKENIZER_FILE).read_bytes()
    except FileNotFoundError:
        return Tokens(ids, frozenset(ids), special) if ids or config else None
    whole = _parsed(data)
    added = whole.added | ids.keys()
    return Tokens({**whole.ids, **ids}, added, special, whole=True, splitting=whole.splitting)


@lru_cache(maxsize=2)
def _parsed(data: bytes) -> Tokens:
    """A tokenizer.json. Adapters of one base mostly bring the same, of up to tens of megabytes."""
    try:
        tree = json.loads(data)
        model, added = tree["model"], tree.get("added_tokens") or ()
        vocabulary = model["vocab"]
        if isinstance(vocabulary, list):  # Unigram: a text and its score, by id
            vocabulary = {row[0]: at for at, row in enumerate(vocabulary)}
        extra = {str(token["content"]): int(token["id"]) for token in added}
        ids = {**vocabulary, **extra}
        return Tokens(ids, frozenset(extra), {}, whole=True, splitting=_splitting(tree))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterConfigInvalid(
            f"{TOKENIZER_FILE}: not what the tokenizers library writes "
            f"({type(error).__name__}: {str(error)[:200]}); save it again, or remove the file"
        ) from error


def _compared(adapter: Tokens, base: Tokens, *, foreign: bool) -> Iterator[str]:
    differing = _differences(adapter, base)
    if differing:
        named = ", ".join(differing[:_SHOWN]) + (", …" if len(differing) > _SHOWN else "")
        count = "1 token" if len(differing) == 1 else f"{len(differing)} tokens"
        said = f"its tokenizer has {count} that the base's has not, or under other ids: {named}"
        if not foreign:
            raise TokensDiffer(
                f"{said}. The base's tokenizer would split their text into other tokens than the "
                "adapter was trained on. Train with the base's tokenizer, or merge the adapter "
                "into a base that has these tokens; foreign_tokens: true serves it without them"
            )
        yield f"{said}. They are lost: the base's tokenizer splits their text into its own tokens"
    if adapter.splitting and base.splitting and adapter.splitting != base.splitting:
        yield (
            f"{TOKENIZER_FILE} splits text by other rules than the base's (merges, normalizer or "
            "pre_tokenizer); prompts are split as the base's"
        )
    end, ends = adapter.special.get("eos_token"), base.special.get("eos_token")
    if end and ends and end != ends:
        at = adapter.ids.get(end)
        yield (
            f"it was trained to end answers with {quoted(end, 40)}, and the base ends them with "
            f"{quoted(ends, 40)}, as the server does; requests may add "
            + (f'"stop_token_ids": [{at}]' if at is not None else f'"stop": [{quoted(end, 40)}]')
        )


def _differences(adapter: Tokens, base: Tokens) -> list[str]:
    """The tokens that matter and are not the base's, as sentences name them."""
    named = {text for text in base.special.values() if text}
    differing = []
    for text in adapter.ids if base.whole else adapter.added:
        at, here = adapter.ids[text], base.ids.get(text)
        known_by_name = not base.whole and text in named
        if at == here or (here is None and (known_by_name or _only_pads(text, adapter))):
            continue
        there = "" if here is None else f", the base's {here}"
        differing.append((at, f"{quoted(text, 40)} ({at}{there})"))
    return [shown for _, shown in sorted(differing)]


def _only_pads(text: str, adapter: Tokens) -> bool:
    """Whether a token is there to fill batches in training, and never in a prompt."""
    return [name for name, other in adapter.special.items() if other == text] == ["pad_token"]


def _beside(directory: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Tokens that were added, as files beside the vocabulary tell."""
    for text, at in read_object(directory / ADDED_FILE).items():
        if isinstance(at, int):
            yield text, at
    decoder = config.get("added_tokens_decoder")
    for number, token in (decoder if isinstance(decoder, dict) else {}).items():
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str) and number.isdecimal():
            yield content, int(number)


def _splitting(tree: Mapping[str, Any]) -> str:
    """A hash of how text is split; what versions spell in two ways is one."""
    total = hashlib.sha256()
    for merge in tree["model"].get("merges") or ():
        total.update((merge if isinstance(merge, str) else " ".join(merge)).encode() + b"\n")
    total.update(json.dumps([_set(tree.get(part)) for part in _SPLITTING]).encode())
    return total.hexdigest()


def _set(value: Any) -> Any:
    """Without what is null or false, which some versions leave out."""
    if isinstance(value, dict):
        return {key: _set(each) for key, each in sorted(value.items()) if each not in (None, False)}
    return [_set(each) for each in value] if isinstance(value, list) else value


def _stamp(base: Path) -> tuple[int, ...]:
    """Changes when a base's tokenizer is replaced."""
    files = [base / name for name in (TOKENIZER_FILE, CHAT_FILE, ADDED_FILE)]
    return tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)


@lru_cache(maxsize=2)
def _base_tokens(base: Path, stamp: tuple[int, ...]) -> Tokens | None:
    """A base's, which is read once for many adapters. One that cannot be read is not compared."""
    try:
        return read_tokenizer(base)
    except (AdapterConfigInvalid, OSError):
        return None
