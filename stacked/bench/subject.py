"""What is measured: a base, its adapters, and engine settings that both sides get."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stacked.bases import resolve
from stacked.bench.adapters import TARGETS, generate, size_of
from stacked.bench.report import Telling
from stacked.bench.shapes import SHAPES, build_shape, shape_options
from stacked.config import Config, parse
from stacked.core import Adapter, Digest
from stacked.engine.machine import look
from stacked.engine.plan import EnginePlan, make_plan
from stacked.engine.support import require_build
from stacked.errors import ConfigInvalid, ParameterInvalid, WeightsInvalid
from stacked.store import BaseModules


@dataclass(frozen=True, slots=True)
class Requested:
    """A user's options. `adapters`: their directories; without any, random ones are made."""

    base: str
    adapters: Sequence[Path] = ()
    rank: int = 8
    targets: str = "attention"
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subject:
    """A base on disk with adapters of one rank under the keys a0, a1, …"""

    base: Path
    adapters: Sequence[Path]
    rank: int
    targets: str
    engine: Mapping[str, Any]
    """vLLM's options, as requested."""

    @property
    def members(self) -> dict[str, Path]:
        return {f"a{at}": path for at, path in enumerate(self.adapters)}

    def tree(self, engine: Mapping[str, Any]) -> dict[str, Any]:
        """The config that serves it with these engine options."""
        listed = [{"key": key, "source": str(path)} for key, path in self.members.items()]
        return {
            "base": {"model": str(self.base), "key": "base"},
            "group": {"name": "bench", "members": listed},
            "engine": dict(engine),
        }

    def options(self) -> dict[str, Any]:
        """Every setting of the engine, chosen as a server of ours would; both sides get these."""
        modules = BaseModules.read(self.base)
        plan = plan_of(self.base, modules, adapters_of(self.adapters), self.engine)
        return {name: value for name, value in plan.options.items() if name != "enable_lora"}

    def summary(self) -> dict[str, Any]:
        """Its description for the figures, without paths of this machine."""
        return {
            "base": self.base.name,
            "adapters": len(self.adapters),
            "rank": self.rank,
            "targets": self.targets,
            "adapter_bytes": size_of(self.adapters[0]) if self.adapters else 0,
            "engine": dict(self.engine),
        }


def prepare(
    requested: Requested, count: int, directory: Path, data_dir: Path, tell: Telling
) -> Subject:
    """Find or make the base and `count` adapters. Raises BaseNotFound, ParameterInvalid."""
    if requested.base in SHAPES:
        base = build_shape(requested.base, directory)
        engine = {**shape_options(requested.base), **requested.engine}
    else:
        base, engine = resolve(requested.base, data_dir), dict(requested.engine)
    if requested.adapters:
        if len(requested.adapters) < count:
            raise ParameterInvalid(
                f"{count} adapters are needed and {len(requested.adapters)} named; name more, or "
                "none: then random ones are made"
            )
        return _own(base, [path.resolve() for path in requested.adapters[:count]], engine)
    if requested.targets not in TARGETS:
        raise ParameterInvalid(f"no targets {requested.targets!r}; there are {', '.join(TARGETS)}")
    if count:
        tell.begin(f"Making {count} random adapters of rank {requested.rank}")
    modules, targets = BaseModules.read(base), TARGETS[requested.targets]
    place = directory / "adapters"
    made = generate(modules, count, requested.rank, targets, place, tell.fraction)
    return Subject(base, made, requested.rank, requested.targets, engine)


def subject_of(config: Config, data_dir: Path) -> Subject:
    """The base and the members of a config; ConfigInvalid if a member is not a directory."""
    paths = [Path(member.source) for member in config.group.members]
    if away := [str(path) for path in paths if not path.is_dir()]:
        raise ConfigInvalid(f"{away[0]} is no directory; only adapters on this machine are timed")
    return _own(resolve(config.base.model, data_dir), paths, config.engine)


def _own(base: Path, adapters: Sequence[Path], engine: Mapping[str, Any]) -> Subject:
    return Subject(base, adapters, max(map(rank_of, adapters), default=0), "as they are", engine)


def config_of(subject: Subject) -> Config:
    """The subject as a config, on loopback."""
    return parse(subject.tree(subject.engine), where="bench", directory=Path("/"))


def adapters_of(paths: Sequence[Path]) -> list[Adapter]:
    """Each under its own digest: two of the same content are measured as two adapters."""
    return [
        Adapter(Digest(f"sha256:{at:064x}"), path, size_of(path), rank_of(path), ())
        for at, path in enumerate(paths)
    ]


def plan_of(
    base: Path, modules: BaseModules, adapters: Sequence[Adapter], options: Mapping[str, Any]
) -> EnginePlan:
    """The engine's plan on this machine, as a server of ours makes it."""
    return make_plan(
        base=base,
        shapes=modules.modules,
        served_names=("base",),
        adapters=adapters,
        options=options,
        machine=look(),
        build=require_build(),
    )


def rank_of(adapter: Path) -> int:
    """As the adapter's config says. Raises WeightsInvalid."""
    try:
        return int(json.loads((adapter / "adapter_config.json").read_bytes())["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsInvalid(f"{adapter} is no LoRA adapter that can be read: {error}") from error


def engine_options(words: Sequence[str]) -> dict[str, Any]:
    """`max_model_len=512` and so on, values read as YAML. Raises ParameterInvalid."""
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ParameterInvalid(f"{word!r} is not NAME=VALUE, as in max_model_len=512")
        options[name.strip()] = yaml.safe_load(value)
    return options
