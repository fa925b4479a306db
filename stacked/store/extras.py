"""What an adapter has besides its two files: its chat templates and its tokens.

Templates become a part of its content; the rest is checked once and not stored.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from stacked.chat.sandbox import look_once
from stacked.chat.templates import CHAT_FILE, MORE_TEMPLATES, ChatTemplates, read_chat
from stacked.errors import AdapterError, AdapterTooLarge, ChatTemplateInvalid
from stacked.store.files import EXTRA
from stacked.store.limits import Limits
from stacked.store.text import quoted
from stacked.store.tokens import check_tokens


def settle(
    copy: Path, base: Path | None, limits: Limits, *, foreign_tokens: bool = False
) -> tuple[str, ...]:
    """Reduce a private copy to the adapter's content; returns warnings about what is lost.

    `base`: the directory of its base model. Raises TokensDiffer, ChatTemplateInvalid,
    AdapterConfigInvalid, AdapterTooLarge.
    """
    if not any((copy / name).exists() for name in (*EXTRA, MORE_TEMPLATES)):
        return ()
    warnings = check_tokens(copy, base, foreign=foreign_tokens)
    chat = read_chat(copy)
    if chat is not None:
        chat, more = _looked_at(chat, limits)
        warnings += more
    for name in (*EXTRA, MORE_TEMPLATES):
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if chat is not None:
        (copy / CHAT_FILE).write_bytes(chat.stored())
    return warnings


def chat_summary(chat: ChatTemplates | None, base: Path | None) -> str:
    """Which chat template an adapter's prompts use, to be displayed."""
    if chat is None:
        return "the base's"
    names = "" if [*chat.templates] == ["default"] else f" ({', '.join(sorted(chat.templates))})"
    try:
        theirs = read_chat(base) if base is not None else None
    except (AdapterError, OSError):
        theirs = None
    same = theirs is not None and theirs.reading(chat.tokens).stored() == chat.stored()
    return f"its own{names}, which is the base's" if same else f"its own{names}"


def _looked_at(chat: ChatTemplates, limits: Limits) -> tuple[ChatTemplates, tuple[str, ...]]:
    """The templates with only the tokens that they read, and warnings about them."""
    variables: set[str] = set()
    warnings = []
    if len(chat.templates) > limits.max_templates:
        raise AdapterTooLarge(f"it has more than {limits.max_templates} chat templates")
    for name, text in chat.templates.items():
        if len(text) > limits.max_template_characters:
            raise AdapterTooLarge(
                f"chat template {quoted(name)} has {len(text):,} characters; at most "
                f"{limits.max_template_characters:,} are served"
            )
        try:
            look = look_once(text)
        except ChatTemplateInvalid as error:
            raise ChatTemplateInvalid(
                f"chat template {quoted(name)}: {error}. Correct it, or remove it to be served "
                "with the base's"
            ) from error
        variables |= look.variables
        if look.plain is not None and name == "default":
            warnings.append(f"its chat template refuses a plain message by a user: {look.plain}")
    return chat.reading(variables), tuple(warnings)
