"""Whether an adapter's tokenizer has tokens that its base's lacks, or other ones under their ids.

Only what can change a prompt counts: texts and ids of tokens, and how text is split. Padding,
truncation, lengths and a token that only pads do not.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacked.chat.templates import CHAT_FILE, read_object, read_tokens
from stacked.errors import AdapterConfigInvalid, TokensDiffer
from stacked.store.files import ADDED_FILE, TOKENIZER_FILE
from stacked.store.text import quoted

_SHOWN = 5
# Bytes of a tokenizer.json that are parsed in about a millisecond.
_LARGE = 128 * 1024
# Of a separate process. Two tokenizers of 256,000 tokens take 2 s and 310 MiB.
_MOST_SECONDS = 60.0
_MOST_MEMORY = 2 << 30
# Results of comparisons in a separate process: most adapters of a group have the same tokenizer.
_REMEMBERED = 64
_APART: dict[tuple[str, str, bool], tuple[str, ...]] = {}
_ID = re.compile(r"[0-9]{1,12}")
# Parts of a tokenizer.json other than the vocabulary that decide how text is split.
_SPLITTING = ("normalizer", "pre_tokenizer")


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenizer as far as it is known from its files.

    `whole`: whether `ids` has all of its tokens, not just those that were added to a vocabulary.
    `splitting` identifies how text is split, if that is known.
    """

    ids: Mapping[str, int]
    added: frozenset[str]
    special: Mapping[str, str | None]
    whole: bool = False
    splitting: str = ""


def check_tokens(directory: Path, base: Path | None, *, foreign: bool) -> tuple[str, ...]:
    """Compare an adapter's tokenizer with its base's; warnings about what is lost.

    `foreign` accepts tokens that the base lacks. Raises TokensDiffer, AdapterConfigInvalid.
    """
    if base is None:
        return ()
    large = _size(directory) > _LARGE or _size(base) > _LARGE
    if large and not _same_at_a_glance(directory, base):
        key = (_fingerprint(directory), _fingerprint(base), foreign)
        if key not in _APART:
            if len(_APART) >= _REMEMBERED:
                _APART.clear()
            _APART[key] = _compared_apart(directory, base, foreign)
        return _APART[key]
    return compare(directory, base, foreign=foreign, vocabulary=not large)


def compare(
    directory: Path, base: Path, *, foreign: bool, vocabulary: bool = True
) -> tuple[str, ...]:
    """`check_tokens` in this process; `vocabulary` may be skipped if it is the same."""
    brought = read_tokenizer(directory, vocabulary=vocabulary)
    try:
        there = read_tokenizer(base, vocabulary=vocabulary)
    except (AdapterConfigInvalid, OSError):
        return ()  # the engine reports a base's tokenizer that cannot be read
    if brought is None or there is None:
        return ()
    return tuple(_compared(brought, there, foreign=foreign))


def _size(directory: Path) -> int:
    file = directory / TOKENIZER_FILE
    return file.stat().st_size if file.is_file() else 0


def _fingerprint(directory: Path) -> str:
    """Identifies a tokenizer, as far as it is compared."""
    config = read_object(directory / CHAT_FILE)
    known = [dict(_beside(directory, config)), read_tokens(directory, config)]
    total = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    if (directory / TOKENIZER_FILE).is_file():
        with (directory / TOKENIZER_FILE).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _same_at_a_glance(directory: Path, base: Path) -> bool:
    """Whether nothing but named special tokens can differ, without reading a vocabulary."""
    one, other = directory / TOKENIZER_FILE, base / TOKENIZER_FILE
    if not one.is_file() or not other.is_file() or not filecmp.cmp(one, other, shallow=False):
        return False
    places = (directory, base)
    ours, theirs = (dict(_beside(place, read_object(place / CHAT_FILE))) for place in places)
    return ours.items() <= theirs.items()


def _compared_apart(directory: Path, base: Path, foreign: bool) -> tuple[str, ...]:
    """`compare` in a separate process: parsing megabytes of JSON would block every other thread."""
    script = "import sys; from stacked.store.tokens import tell; tell(*sys.argv[1:])"
    arguments = [str(directory), str(base), "foreign" if foreign else ""]
    command = [sys.executable, "-c", script, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, check=True, text=True, timeout=_MOST_SECONDS
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        raise AdapterConfigInvalid(
            f"{TOKENIZER_FILE}: could not be compared with the base's in {_MOST_SECONDS:.0f} s and "
            f"{_MOST_MEMORY >> 30} GiB; save it again, or remove the file"
        ) from error
    result = json.loads(done.stdout)
    if result["code"] is not None:
        kinds = {kind.code: kind for kind in (TokensDiffer, AdapterConfigInvalid)}
        raise kinds[result["code"]](result["said"])
    return tuple(result["said"])


def tell(directory: str, base: str, foreign: str) -> None:
    """Print what `compare` finds, for the process that started this one."""
    with contextlib.suppress(ValueError, OSError):  # macOS does not have this limit
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    try:
        said: Any = compare(Path(directory), Path(base), foreign=bool(foreign))
        code = None
    except (TokensDiffer, AdapterConfigInvalid) as error:
        said, code = str(error), error.code
    print(json.dumps({"code": code, "said": said}))


def read_tokenizer(directory: Path, *, vocabulary: bool = True) -> Tokens | None:
    """A tokenizer from its files; None if there are none. Raises AdapterConfigInvalid."""
    config = read_object(directory / CHAT_FILE)
    special = read_tokens(directory, config)
    ids = dict(_beside(directory, config))
    file = directory / TOKENIZER_FILE
    if not vocabulary or not file.is_file():
        known = ids or config or file.is_file()
        return Tokens(ids, frozenset(ids), special) if known else None
    whole = _parsed(file.read_bytes())
    added = whole.added | ids.keys()
    return Tokens({**whole.ids, **ids}, added, special, whole=True, splitting=whole.splitting)


def _parsed(data: bytes) -> Tokens:
    """A tokenizer from its tokenizer.json."""
    try:
        tree = json.loads(data)
        model, added = tree["model"], tree.get("added_tokens") or ()
        vocabulary = model["vocab"]
        if isinstance(vocabulary, list):  # Unigram: a text and its score, by id
            vocabulary = {row[0]: at for at, row in enumerate(vocabulary)}
        extra = {str(token["content"]): token["id"] for token in added}
        ids = {**vocabulary, **extra}
        if not all(isinstance(at, int) for at in ids.values()):
            raise TypeError("an id is not a whole number")
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
        said = f"its tokenizer has {count} that the base's lacks or has under other ids: {named}"
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
    """The tokens that matter and are not the base's, as messages name them."""
    named = {text for text in base.special.values() if text}
    differing = []
    for text in adapter.ids if base.whole else adapter.added:
        at, here = adapter.ids[text], base.ids.get(text)
        known_by_name = not base.whole and text in named
        # It only fills batches in training, and is never in a prompt.
        only_pads = [name for name, one in adapter.special.items() if one == text] == ["pad_token"]
        if at == here or (here is None and (known_by_name or only_pads)):
            continue
        there = "" if here is None else f", the base's {here}"
        differing.append((at, f"{quoted(text, 40)} ({at}{there})"))
    return [shown for _, shown in sorted(differing)]


def _beside(directory: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Tokens that were added, from the files other than the vocabulary."""
    for text, at in read_object(directory / ADDED_FILE).items():
        if isinstance(at, int):
            yield text, at
    decoder = config.get("added_tokens_decoder")
    for number, token in (decoder if isinstance(decoder, dict) else {}).items():
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str) and _ID.fullmatch(number):
            yield content, int(number)


def _splitting(tree: Mapping[str, Any]) -> str:
    """A hash of how text is split, equal for the spellings of all versions."""
    total = hashlib.sha256()
    for merge in tree["model"].get("merges") or ():
        total.update((merge if isinstance(merge, str) else " ".join(merge)).encode() + b"\n")
    total.update(json.dumps([_set(tree.get(part)) for part in _SPLITTING]).encode())
    return total.hexdigest()


def _set(value: Any) -> Any:
    """Without null and false values, which some versions leave out."""
    if isinstance(value, dict):
        return {key: _set(each) for key, each in sorted(value.items()) if each not in (None, False)}
    return [_set(each) for each in value] if isinstance(value, list) else value
