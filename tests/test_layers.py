"""Imports run downward: every module of the package is parsed and its imports are looked at.

It must not import what it judges; a module that nobody has placed in a layer fails.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import stacked

PACKAGE = Path(stacked.__file__).parent

# A package stands for all of its modules.
LAYERS = {
    "errors": 0,
    "callers": 0,
    "core": 0,
    "logs": 0,
    "steps": 0,
    "config": 1,
    "container": 1,
    "keys": 1,
    "signing": 1,
    "vllm_flags": 1,
    "bases": 1,
    "packages": 1,
    "metrics": 1,
    "tracing": 1,
    "log_files": 1,
    "chat": 1,
    "store": 1,
    "experiments": 1,
    "groups": 1,
    "fairness": 1,
    "fleet": 1,
    "answers": 1,
    "client": 1,
    "engine": 2,
    "models": 2,
    "loader": 3,
    "live": 3,
    "phases": 3,
    "serving": 3,
    "registry": 3,
    "catalogue": 4,
    "retention": 4,
    "deployment": 4,
    "flushing": 4,
    "outcomes": 4,
    "usage": 4,
    "supervision": 4,
    "service": 4,
    "api": 5,
    "bench": 5,
    "ray": 5,
    "stack": 5,
    "doctor": 5,
    "terminal": 6,
    "cli": 6,
    "__main__": 6,
    "__init__": 6,
}
ONLY_IN = {
    "vllm": ("engine",),
    "fastapi": ("api",),
    "starlette": ("api",),
    "uvicorn": ("api",),
    "opentelemetry": ("tracing",),
    "torch": ("engine", "bases", "models"),
    "onnxruntime": ("models",),
    "openvino": ("models",),
    "transformers": ("engine", "bases"),
    "jinja2": ("chat", "engine"),
    "sqlalchemy": ("registry",),
    "ray": ("ray",),
    "aiohttp": ("ray",),
    "typer": ("cli",),
    "rich": ("cli", "terminal"),
}


def modules() -> dict[str, Path]:
    """Every module: its dotted name below the package, and its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


MODULES = modules()


def imports(path: Path, module: str) -> Iterator[str]:
    """Every name that a module imports anywhere in it, functions and TYPE_CHECKING included."""
    package = ["stacked", *module.split(".")]
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            # `from stacked import core` names a module, `from stacked.core import Adapter` none.
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def internal(path: Path, module: str) -> set[str]:
    """The modules of this package that `module` imports."""
    found = set()
    for name in imports(path, module):
        parts = name.split(".")
        if parts[0] != "stacked":
            continue
        inner = parts[1:]
        while inner and ".".join(inner) not in MODULES:
            inner = inner[:-1]
        found.add(".".join(inner) or "__init__")
    return found - {module}


GRAPH = {module: internal(path, module) for module, path in MODULES.items()}


def layer(module: str) -> int:
    return LAYERS[module.split(".")[0]]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module: str) -> None:
    assert module.split(".")[0] in LAYERS, f"{module} stands in no layer; place it in LAYERS"
    upward = {other for other in GRAPH[module] if layer(other) > layer(module)}
    assert not upward, f"{module} (layer {layer(module)}) imports upward: {sorted(upward)}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_is_imported_in_its_own_place_only(library: str) -> None:
    allowed = ONLY_IN[library]
    users = {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == library for name in imports(path, module))
    }
    elsewhere = {module for module in users if module.split(".")[0] not in allowed}
    assert not elsewhere, f"{library} belongs in {allowed}, and is imported in {sorted(elsewhere)}"


def test_no_import_cycles() -> None:
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in sorted(GRAPH[module]):
                # A package imports its modules and is named by them; only the modules can cycle.
                if not module.startswith(f"{other}."):
                    walk(other, (*way, module))
            done.add(module)

    for module in GRAPH:
        walk(module, ())


def test_every_module_says_what_it_owns() -> None:
    silent = [
        module
        for module, path in MODULES.items()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_an_import_is_seen_wherever_and_however_it_is_written(tmp_path: Path) -> None:
    source = tmp_path / "leases.py"
    source.write_text(
        "from __future__ import annotations\n"
        "import vllm.sampling_params\n"
        "if TYPE_CHECKING:\n    from stacked.api import server\n"
        "def late():\n    from ..service import Service\n    from . import routing\n",
        encoding="utf-8",
    )
    assert internal(source, "groups.leases") == {"api.server", "service", "groups.routing"}
    assert "vllm.sampling_params" in set(imports(source, "groups.leases"))
