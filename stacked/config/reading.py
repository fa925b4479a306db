"""A YAML file to its tree: unknown and doubled keys are refused, relative paths made absolute."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from stacked.config.auth import AuthConfig
from stacked.config.evaluations import EvaluationConfig
from stacked.config.fields import Frozen
from stacked.config.tree import Config, ControlConfig
from stacked.errors import ConfigInvalid
from stacked.logs import shown_url

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")

C = TypeVar("C", bound=Frozen)
G = TypeVar("G", bound=ControlConfig)


def load(path: Path) -> Config:
    """Read, check and return the file's tree, its relative paths made absolute.

    Raises ConfigInvalid with the file, the key path and what was expected there.
    """
    return parse(_read(path), where=str(path), directory=path.resolve().parent)


def load_server(path: Path) -> ControlConfig:
    """`load` for a server, which may start without `base`, with nothing deployed."""
    tree, directory = _read(path), path.resolve().parent
    if not isinstance(tree, dict) or "base" in tree:
        return parse(tree, where=str(path), directory=directory)
    return _resolved(_checked(ControlConfig, _with_sets(tree, directory), str(path)), directory)


def _read(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path}: cannot be read ({error})") from error
    try:
        return yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # too deep, or a huge number
        raise ConfigInvalid(f"{path}: not valid YAML: {error}") from error


def load_set(path: Path) -> EvaluationConfig:
    """Read an evaluation set with its examples. Raises ConfigInvalid with the place."""
    return _checked(EvaluationConfig, _set(path), str(path))


def _set(path: Path) -> dict[str, Any]:
    """The tree of a set, its examples in it also where they are lines of JSON in a file."""
    tree = _read(path)
    if not isinstance(tree, dict):
        raise ConfigInvalid(f"{path}: expected a mapping with name, keys, metric, examples")
    if isinstance(named := tree.get("examples"), str):
        tree["examples"] = _lines(path.resolve().parent / named)
    return tree


def _lines(path: Path) -> list[object]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path}: cannot be read ({error})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise ConfigInvalid(f"{path}: line {number} is no JSON: {error}") from error
    return found


def _with_sets(tree: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The tree with the sets that its group's gates name as files."""
    group = tree.get("group")
    if not isinstance(group, dict) or not isinstance(gates := group.get("gates"), list):
        return tree
    read = [_set(directory / each) if isinstance(each, str) else each for each in gates]
    return {**tree, "group": {**group, "gates": read}}


def parse(tree: object, *, where: str, directory: Path) -> Config:
    """Check a tree that came from `where`; paths in it are relative to `directory`."""
    if not isinstance(tree, dict):
        raise ConfigInvalid(
            f"{where}: expected a mapping with base, {', '.join(ControlConfig.model_fields)}"
        )
    config = _resolved(_checked(Config, _with_sets(tree, directory), where), directory)
    model = resolve_path(config.base.model, directory)
    return config.model_copy(update={"base": config.base.model_copy(update={"model": model})})


def _checked(kind: type[C], tree: dict[str, Any], where: str) -> C:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigInvalid(_sentences(kind, where, error)) from error


def _resolved(config: G, directory: Path) -> G:
    members = tuple(
        member.model_copy(update={"source": resolve_path(member.source, directory)})
        for member in config.group.members
    )
    roots = tuple(str((directory / root).resolve()) for root in config.server.adapter_roots)
    server: dict[str, Any] = {
        "adapter_roots": roots,
        "auth": _resolved_auth(config.server.auth, directory),
    }
    if (tls := config.server.tls) is not None:
        paths = tls.model_dump(exclude_none=True)
        paths = {name: _absolute(text, directory) for name, text in paths.items()}
        server["tls"] = tls.model_copy(update=paths)
    # Their links stay: that of a virtual environment says which it is.
    pythons = {
        name: os.path.abspath(directory / Path(text).expanduser())
        for name, text in config.models.pythons.items()
    }
    contents = config.storage.contents
    if contents is not None and "://" not in contents:
        contents = _absolute(contents, directory)
    return config.model_copy(
        update={
            "storage": config.storage.model_copy(update={"contents": contents}),
            "group": config.group.model_copy(update={"members": members}),
            "server": config.server.model_copy(update=server),
            "models": config.models.model_copy(update={"pythons": pythons}),
        }
    )


def _resolved_auth(auth: AuthConfig, directory: Path) -> AuthConfig:
    changed: dict[str, Any] = {}
    if auth.directory is not None:
        changed["directory"] = _absolute(auth.directory, directory)
    if auth.oci is not None:
        keys = {
            id: text if "-----BEGIN" in text else _absolute(text, directory)
            for id, text in auth.oci.keys.items()
        }
        changed["oci"] = auth.oci.model_copy(update={"keys": keys})
    return auth.model_copy(update=changed)


def _absolute(text: str, directory: Path) -> str:
    return str((directory / Path(text).expanduser()).resolve())


def resolve_path(text: str, directory: Path) -> str:
    """Make a path absolute against `directory`; leave URLs, Hub ids and known names as they are.

    What begins with `.`, `/` or `~`, or has more than one slash, is a path. A single word or
    `org/name` is left to the caller, which tries a directory of that name first.
    """
    if _SCHEME.match(text):
        return text
    path = Path(text).expanduser()
    if path.is_absolute():
        return str(path)
    looks_like_name = _HUB_ID.fullmatch(text) or "/" not in text
    if looks_like_name and not text.startswith(".") and not (directory / path).exists():
        return text
    return str((directory / path).resolve())


def said_of(issue: Mapping[str, Any]) -> str:
    """The message of one of pydantic's errors: the validator's own, if it has one."""
    return str(issue["ctx"]["error"] if issue["type"] == "value_error" else issue["msg"])


def _sentences(kind: type[Frozen], where: str, error: ValidationError) -> str:
    lines = []
    for issue in error.errors(include_url=False):
        place = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in issue["loc"]
        ).lstrip(".")
        if issue["type"] == "extra_forbidden":
            said = f"unknown key; expected one of: {', '.join(_siblings(kind, issue['loc']))}"
        else:
            said = said_of(issue)
            if not (isinstance(issue["input"], dict) or "database" in issue["loc"]):
                said += f" (got {shown_url(str(issue['input']))[:80]!r})"
        lines.append(f"{where}: {place or 'file'}: {said}")
    return "\n".join(lines)


def _siblings(kind: type[Frozen], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed where an unknown one was found."""
    model = root = Config if issubclass(kind, ControlConfig) else kind
    for part in location[:-1]:
        inner = _model_of(model.model_fields[part].annotation) if isinstance(part, str) else model
        if inner is None:
            break
        model = inner
    if model is root is Config:
        return ["base", *ControlConfig.model_fields]
    return list(model.model_fields)


def _model_of(annotation: Any) -> type[Frozen] | None:
    """The model in a field's type: itself, one of a union's, or a tuple's."""
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return annotation
    return next(filter(None, map(_model_of, get_args(annotation))), None)


class _UniqueKeys(yaml.SafeLoader):
    """YAML lets a later key silently replace an earlier one; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
