"""Uploads local adapters and other models to a server that lacks them, with a progress bar.

Commands that name adapters to a server do this first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stacked.client import Client
    from stacked.config import MemberConfig
    from stacked.core import Digest
    from stacked.store.uploads import Outgoing
    from stacked.terminal import Terminal


@dataclass(frozen=True, slots=True)
class Source:
    """Where a member's content comes from: this machine, with its digest, or elsewhere."""

    member: MemberConfig
    place: str
    """The member's place in its file."""
    adapter: bool
    digest: Digest | None = None

    @property
    def registered(self) -> str:
        """What the server reads: an adapter that it then has, or one elsewhere."""
        return self.digest or self.member.source

    @property
    def label(self) -> str:
        return self.member.key or self.member.id or self.member.source

    def copied(self) -> AbstractContextManager[Outgoing]:
        """A private copy of it. Raises StackedError."""
        from stacked.store import outgoing
        from stacked.store.models import outgoing_model

        return (outgoing if self.adapter else outgoing_model)(self.member.source)

    @contextmanager
    def errors_named(self) -> Iterator[None]:
        """Within the block errors begin with the member's place."""
        from stacked.client import ClientError
        from stacked.errors import StackedError

        where = f"{self.place} ({self.label})"
        try:
            yield
        except ClientError as error:
            raise ClientError(error.code, f"{where}: {error}", error.status) from error
        except StackedError as error:
            raise type(error)(f"{where}: {error}") from error


def sent(
    client: Client, members: Sequence[MemberConfig], progress: Terminal, *, adapters: bool = True
) -> list[Source]:
    """All members' sources, once the server has every local one.

    `adapters`: otherwise models of other kinds, which are all local. All are read and checked
    before the first is sent; only one is copied at a time. Raises StackedError, ClientError.
    """
    progress.begin(f"Reading {len(members)} members")
    found = []
    for at, member in enumerate(members):
        found.append(_read(Source(member, f"group.members[{at}]", adapters)))
        progress.fraction((at + 1) / len(members))
    local: dict[Digest, Source] = {}
    for each in found:
        if each.digest is not None:
            local.setdefault(each.digest, each)
    missing = [each for digest, each in local.items() if not client.has_adapter(digest)]
    progress.done()
    if local:
        progress.note(f"the server has {len(local) - len(missing)} of {len(local)} from here")
    for each in missing:
        with each.errors_named():
            _send(client, each, progress)
    return found


def _read(source: Source) -> Source:
    """With the digest of the local adapter."""
    from stacked.store import is_remote, parse_hub

    given = source.member.source
    with source.errors_named():
        if source.adapter and is_remote(given):
            if "://" not in given:
                parse_hub(given)  # probably a mistyped directory
            return source
        with source.copied() as content:
            return replace(source, digest=content.digest)


def _send(client: Client, source: Source, progress: Terminal) -> None:
    from stacked.client import ClientError
    from stacked.errors import DigestMismatch
    from stacked.terminal import size

    with source.copied() as content:
        if content.digest != source.digest:
            raise DigestMismatch(f"{source.member.source} has changed just now; run this again")
        total = content.size()
        progress.begin(f"Sending {source.label}, {size(total)}", total)
        try:
            client.send_adapter(content.digest, _counted(content.parts(), progress), total)
        except ClientError as error:
            if error.status:
                raise
            said = f"{error}; run this again: what has arrived is not sent twice"
            raise ClientError(error.code, said) from error
        progress.done()


def _counted(parts: Iterator[bytes], progress: Terminal) -> Iterator[bytes]:
    for part in parts:
        yield part
        progress.moved(len(part))
