"""The content digest of an adapter: which bytes decide what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from stacked.chat.templates import CHAT_FILE
from stacked.core import Digest
from stacked.store.files import CONFIG_FILE, WANTED, WEIGHTS_FILE
from stacked.store.peft_config import PeftConfig

_FORMAT = b"stacked adapter 1\n"
# Hashed between two pauses. 39 MB at once, on the core that serves requests, made a token 25 to
# 35 ms late (docs/live-update.md).
_CHUNK = 1 << 19


def no_pause() -> None:
    """For callers that need no pause."""
    return


def digest_of(config: PeftConfig, directory: Path, pause: Callable[[], None] = no_pause) -> Digest:
    """sha256 over the canonical config, the weights and the chat templates, framed one by one.

    `directory` is laid out as in the store; without templates of its own there are two frames. A
    frame is `<length of name>:<name><length of content>:` and the content, so no two different
    sets of files give the same bytes. The leading line lets the definition change one day without
    an old digest meaning something new. `pause` is called between chunks.
    """
    weights, chat = directory / WEIGHTS_FILE, directory / CHAT_FILE
    canonical = config.canonical()
    total = hashlib.sha256(_FORMAT)
    total.update(_frame(CONFIG_FILE, len(canonical)) + canonical)
    add_file(total, weights, WEIGHTS_FILE, pause)
    if chat.is_file():
        add_file(total, chat, CHAT_FILE)
    return Digest(f"sha256:{total.hexdigest()}")


def sent_digest(config: PeftConfig, directory: Path) -> Digest:
    """The digest to send an adapter under: its own, if it has only its two files.

    Otherwise one over that and every other file, as the store's own digest depends on these.
    """
    own = digest_of(config, directory)
    others = sorted(
        path
        for path in directory.rglob("*")
        if path.is_file() and path.relative_to(directory).as_posix() not in WANTED
    )
    if not others:
        return own
    total = hashlib.sha256(b"stacked upload 1\n" + own.encode())
    for path in others:
        add_file(total, path, path.relative_to(directory).as_posix())
    return Digest(f"sha256:{total.hexdigest()}")


def add_file(
    total: hashlib._Hash, path: Path, name: str, pause: Callable[[], None] = no_pause
) -> None:
    """Hash a file, framed by its name and length."""
    total.update(_frame(name, path.stat().st_size))
    chunk = memoryview(bytearray(_CHUNK))  # one for all: new memory takes as long as the reading
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(chunk):
            total.update(chunk[:size])
            pause()


def _frame(name: str, length: int) -> bytes:
    said = name.encode()
    return b"%d:%b%d:" % (len(said), said, length)
