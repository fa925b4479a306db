"""What Stacked's code takes from vLLM, found in its syntax trees; and what a tree of vLLM's has.

Neither half imports vLLM, so any version can be looked at: installed, or a wheel that was unpacked.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef

_VLLM_NAME = re.compile(r"vllm(\.\w+)+(:\w+(\.\w+)?)?")
_VARIABLE = re.compile(r"VLLM_[A-Z_]+")
_METRIC = re.compile(r"vllm:\w+")


# --- what our code takes ---------------------------------------------------------------------


@dataclass
class Taken:
    """What one of our modules takes from vLLM."""

    names: set[str] = field(default_factory=set)
    """`module:name` of imports, and qualified names in strings."""
    members: set[str] = field(default_factory=set)
    """Attributes of objects that may be vLLM's: all that are annotated `Any`, or come of such."""
    strings: set[str] = field(default_factory=set)
    """Environment variables and metrics."""


def taken(path: Path) -> Taken:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = Taken()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _of_vllm(node.module or ""):
            found.names |= {f"{node.module}:{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found.names |= {alias.name for alias in node.names if _of_vllm(alias.name)}
    for text in _strings(tree):
        if _VLLM_NAME.fullmatch(text):
            found.names.add(text)
        elif _METRIC.fullmatch(text) or _VARIABLE.fullmatch(text):
            found.strings.add(text)
        elif "from vllm" in text:  # a script for another process
            found.names |= _in_script(text)
    scope = _Scope(tree)
    found.members = scope.members
    return found


def _of_vllm(module: str) -> bool:
    return module.partition(".")[0] == "vllm"


def _strings(tree: ast.AST) -> Iterator[str]:
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | Function)
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in documentation:
                yield text


def _in_script(text: str) -> set[str]:
    return {
        f"{node.module}:{alias.name}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and _of_vllm(node.module or "")
        for alias in node.names
    }


class _Scope:
    """The names of a module that may hold objects of vLLM's, and the attributes taken from them.

    Names are followed through assignments, loops and calls, by their spelling in the whole module:
    too many rather than too few.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.members: set[str] = set()
        self._foreign: set[str] = set()
        before = -1
        while before != len(self._foreign):
            before = len(self._foreign)
            for node in ast.walk(tree):
                self._follow(node)
        for node in ast.walk(tree):
            self._collect(node)

    def _follow(self, node: ast.AST) -> None:
        match node:
            case ast.ImportFrom(module=module) if _of_vllm(module or ""):
                self._foreign |= {alias.asname or alias.name for alias in node.names}
            case ast.arg(arg=name, annotation=annotation) if _is_any(annotation):
                self._foreign.add(name)
            case ast.AnnAssign(target=target, annotation=annotation) if _is_any(annotation):
                self._mark(target)
            case ast.FunctionDef() | ast.AsyncFunctionDef() if _is_any(node.returns):
                self._foreign.add(node.name)
            case ast.Assign(targets=targets, value=value) if self._is_foreign(value):
                for target in targets:
                    self._mark(target)
            case ast.NamedExpr(target=target, value=value) if self._is_foreign(value):
                self._mark(target)
            case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                if self._is_foreign(value):
                    self._mark(target)

    def _mark(self, target: ast.expr) -> None:
        match target:
            case ast.Name(id=name) | ast.Attribute(attr=name, value=ast.Name(id="self")):
                self._foreign.add(name)
            case ast.Tuple(elts=parts):
                for part in parts:
                    self._mark(part)

    def _is_foreign(self, value: ast.expr | None) -> bool:
        match value:
            case ast.Name(id=name) | ast.Attribute(attr=name, value=ast.Name(id="self")):
                return name in self._foreign
            case ast.Attribute(value=inner) | ast.Await(value=inner) | ast.Subscript(value=inner):
                return self._is_foreign(inner)
            case ast.Call(func=ast.Name(id="super")):
                return True
            case ast.Call(func=ast.Name(id="type" | "getattr"), args=[first, *_]):
                return self._is_foreign(first)
            case ast.Call(func=inner):
                return self._is_foreign(inner)
            case ast.BoolOp(values=parts) | ast.Tuple(elts=parts):
                return any(map(self._is_foreign, parts))
            case ast.IfExp(body=one, orelse=other):
                return self._is_foreign(one) or self._is_foreign(other)
        return False

    def _collect(self, node: ast.AST) -> None:
        match node:
            case ast.ClassDef(bases=bases) if any(map(self._is_foreign, bases)):
                self.members |= _of_self(node)
            case ast.Attribute(value=inner, attr=name) if self._is_foreign(inner):
                self.members.add(name)
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr"),
                args=[inner, ast.Constant(value=str(name)), *_],
            ) if self._is_foreign(inner):
                self.members.add(name)


def _of_self(kind: ast.ClassDef) -> set[str]:
    """What a subclass of vLLM's overrides or takes from `self`."""
    methods = {each.name for each in kind.body if isinstance(each, Function)}
    made, read = set(), set()
    for node in ast.walk(kind):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                (made if isinstance(node.ctx, ast.Store) else read).add(name)
    own = {name for name in methods if name.startswith("_") and not name.endswith("_")}
    return (methods | read) - own - made


def _is_any(annotation: ast.expr | None) -> bool:
    return annotation is not None and any(
        isinstance(node, ast.Name) and node.id in ("Any", "Namespace")
        for node in ast.walk(annotation)
    )


# --- what a tree of vLLM's has ---------------------------------------------------------------


class Tree:
    """The sources of one vLLM: a directory with `vllm` and its metadata, as wheels are unpacked."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def version(self) -> tuple[int, int]:
        (metadata,) = [
            path
            for path in self.root.glob("vllm*.dist-info")
            if re.match(r"vllm(_cpu)?-", path.name)
        ]
        major, minor, *_ = metadata.name.split("-")[1].split(".")
        return int(major), int(minor)

    def has(self, module: str, name: str = "") -> bool:
        """Whether a module has `Class.member`, `function` or any other name; or is there at all."""
        if not name:
            return self._source(module) is not None
        first, _, member = name.partition(".")
        where = self._find(module, first)
        if where is None:
            return False
        return not member or self._member(*where, member)

    def says(self, module: str, text: str) -> bool:
        source = self._source(module)
        return source is not None and re.search(rf"{re.escape(text)}\b", source) is not None

    def _source(self, module: str) -> str | None:
        place = self.root.joinpath(*module.split("."))
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path.read_text(encoding="utf-8")
        return None

    def _parsed(self, module: str) -> ast.Module | None:
        source = self._source(module)
        return None if source is None else _parse(source)

    def _find(self, module: str, name: str) -> tuple[str, ast.AST] | None:
        """Where a name is defined, through imports, and by what."""
        tree = self._parsed(module)
        if tree is None:
            return None
        for node in ast.walk(tree):
            match node:
                case ast.ClassDef(name=own) | ast.FunctionDef(name=own) if own == name:
                    return module, node
                case ast.AsyncFunctionDef(name=own) if own == name:
                    return module, node
                case ast.Assign() | ast.AnnAssign() if name in _targets(node):
                    return module, node
                case ast.Dict(keys=keys) if name in _constants(
                    keys
                ):  # imported when it is asked for
                    return module, node
                case ast.Import(names=names) if any(alias.name == name for alias in names):
                    return name, node
                case ast.ImportFrom(names=names):
                    for alias in names:
                        if name in (alias.asname, alias.name):
                            return self._imported(module, node, alias.name)
                        starred = self._imported(module, node, name) if alias.name == "*" else None
                        if starred is not None:
                            return starred
        return (module, tree) if self.has(f"{module}.{name}") else None

    def _imported(self, module: str, node: ast.ImportFrom, name: str) -> tuple[str, ast.AST] | None:
        origin = node.module or ""
        if node.level:
            package = module if self._is_package(module) else module.rpartition(".")[0]
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            origin = ".".join([*parents, *filter(None, [origin])])
        if not _of_vllm(origin):
            return origin, node  # another library's: nothing more is known
        return self._find(origin, name)

    def _is_package(self, module: str) -> bool:
        return (self.root.joinpath(*module.split(".")) / "__init__.py").is_file()

    def _member(self, module: str, owner: ast.AST, member: str) -> bool:
        if not isinstance(owner, ast.ClassDef):
            return False
        for node in ast.walk(owner):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name == member:
                    return True
                case ast.Assign() | ast.AnnAssign() if member in _targets(node):
                    return True
        for base in owner.bases:
            inner = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(inner, ast.Name):
                where = self._find(module, inner.id)
                if where is not None and where[1] is not owner and self._member(*where, member):
                    return True
        return False


@cache
def _parse(source: str) -> ast.Module:
    return ast.parse(source)


def _targets(node: ast.Assign | ast.AnnAssign) -> set[str]:
    """The names that an assignment makes: plain ones, and those of `self`."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = set()
    for target in targets:
        for part in target.elts if isinstance(target, ast.Tuple) else [target]:
            match part:
                case ast.Name(id=name) | ast.Attribute(attr=name, value=ast.Name(id="self")):
                    names.add(name)
    return names


def _constants(keys: list[ast.expr | None]) -> set[object]:
    return {key.value for key in keys if isinstance(key, ast.Constant)}
