"""The groups of a storm: sets of adapters under keys that are added, removed, moved and renamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacked.config import Config, MemberConfig
from stacked.errors import ConfigInvalid

LEAST = 4
"""Of groups, and so of adapters."""


@dataclass(frozen=True, slots=True)
class Storm:
    """The pool of adapters, and the groups made of it: each maps inference keys to pool numbers."""

    pool: tuple[MemberConfig, ...]
    groups: tuple[Mapping[str, int], ...]

    @property
    def lasting(self) -> tuple[str, ...]:
        """Keys that are in every group: a request for one of them must never be refused."""
        return tuple(key for key in self.groups[0] if all(key in group for group in self.groups))

    @property
    def passing(self) -> tuple[str, ...]:
        """Keys that some group lacks."""
        found = {key: None for group in self.groups for key in group if key not in self.lasting}
        return tuple(found)


def make_storm(config: Config, count: int) -> Storm:
    """`count` groups, each a window of the pool that moves from one to the next.

    The first half of a window has keys that every group has, so that their weights change; the
    rest has keys spelt for its own group, so that adapters in both windows are renamed. Raises
    ConfigInvalid if the pool is too small.
    """
    pool = _distinct(config)
    if count < LEAST or len(pool) < count:
        raise ConfigInvalid(
            f"a storm needs at least {LEAST} groups, and as many adapters as groups; there are "
            f"{count} groups, and the config has {len(pool)} adapters"
        )
    labels = [_label(member, at) for at, member in enumerate(pool)]
    width = -(-2 * len(pool) // 3)
    lasting, step = width // 2, len(pool) // count
    groups = []
    for number in range(count):
        window = [(number * step + at) % len(pool) for at in range(width)]
        group = {labels[at]: window[at] for at in range(lasting)}
        spelling = "ab"[number % 2]
        group |= {f"{labels[at]}+{spelling}": at for at in window[lasting:]}
        groups.append(group)
    return Storm(pool, tuple(groups))


def config_tree(config: Config, members: Sequence[tuple[str, MemberConfig]]) -> dict[str, Any]:
    """The config as a YAML tree that serves these members under these keys, on loopback only."""
    listed = [
        {"key": key, **member.model_dump(exclude={"key"}, exclude_unset=True)}
        for key, member in members
    ]
    own: dict[str, Any] = {"server": {"port", "health_port"}, "group": True, "retention": True}
    tree = config.model_dump(mode="json", exclude=own, exclude_unset=True)
    # Local adapters need a root; others are fetched by their own rules.
    local = [Path(each.source) for each in config.group.members if each.source.startswith("/")]
    tree["group"] = {"name": "bench", "members": listed}
    tree["server"] |= {
        "host": "127.0.0.1",
        "runtime_updates": True,
        "remote_adapters": True,
        "adapter_roots": sorted({str(path.parent) for path in local}),
    }
    return tree


def pool_members(storm: Storm) -> list[tuple[str, MemberConfig]]:
    """The whole pool as one group: an engine started with it has room for every other."""
    return [(_label(member, at), member) for at, member in enumerate(storm.pool)]


def group_members(storm: Storm, group: Mapping[str, int]) -> list[tuple[str, MemberConfig]]:
    return [(key, storm.pool[at]) for key, at in group.items()]


def _distinct(config: Config) -> tuple[MemberConfig, ...]:
    """One member for each source; a second key for the same files adds nothing to the pool."""
    found: dict[str, MemberConfig] = {}
    for member in config.group.members:
        found.setdefault(member.source, member)
    return tuple(found.values())


def _label(member: MemberConfig, at: int) -> str:
    """A key short enough to be spelt in two ways."""
    return member.key if member.key and len(member.key) <= 30 else f"member-{at}"
