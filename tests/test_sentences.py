"""No decision reads a sentence: what was said to people is not searched for what to do next.

Every module of the package is parsed. Text for people is what an exception says, what stands under
names like `message` and `reason`, what progress is told, and what is made of such text. A test of
what it says fails here, and so does a test for several words, whatever the text is. Somebody else's
words, where there is nothing else to read, are allowed below one by one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

import stacked

PACKAGE = Path(stacked.__file__).parent

ALLOWED = {
    ("engine/creating.py", "text in line"): "vLLM tells how far a start is in its log alone",
    ("engine/causes.py", "_PRINTED in lines"): "vLLM passes on what another process printed",
    (
        "api/request_ids.py",
        "str(record.msg).partition(':')",
    ): "vLLM's quotes are cut off",
    ("engine/machine.py", "field.strip() == 'model name'"): "a field of /proc/cpuinfo",
}

# Names, attributes and JSON fields that hold what is said to people.
WORDS = frozenset({"message", "msg", "reason", "sentence", "detail", "said", "told", "advice"})
# What finds out what a text says: methods of it, and functions of `re` and of its patterns.
LOOKS = frozenset({"startswith", "endswith", "removeprefix", "removesuffix", "count", "find"})
LOOKS |= {"rfind", "index", "partition", "rpartition"}
SEARCHES = frozenset({"match", "search", "fullmatch", "findall", "finditer", "split", "sub"})
# Whoever defines one of these is told, in texts, what work is doing.
TOLD = frozenset({"step", "note", "finish", "phase", "begin"})
ERROR = re.compile(r"Error\b|Exception\b")
SPACED = re.compile(r"[A-Za-z]{2,}[,:]? [A-Za-z]{2,}")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Hit = tuple[int, str]


class Reader:
    """What in one module's code reads sentences."""

    def __init__(self, source: str) -> None:
        self.tree = ast.parse(source)
        self.constants = dict(_bound(self.tree.body))
        self.sayers: set[str] = set()
        """Functions of the module that return text for people."""

    def hits(self) -> list[Hit]:
        """The line and the code of each test."""
        functions = [each for each in ast.walk(self.tree) if isinstance(each, Function)]
        while True:  # whoever returns what another says, says it too
            scopes = [Scope(self, each) for each in functions]
            sayers = {each.function.name for each in scopes if each.says()}
            if sayers <= self.sayers:
                return sorted({hit for each in scopes for hit in each.hits()})
            self.sayers |= sayers


class Scope:
    """One function, and which of its names hold text for people."""

    def __init__(self, reader: Reader, function: Function) -> None:
        self.reader = reader
        self.function = function
        self.bound = [*_bound(ast.walk(function))]
        given = function.args
        listed = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        kinds = {each.arg: ast.unparse(each.annotation or ast.Name("")) for each in listed}
        handlers = (each for each in ast.walk(function) if isinstance(each, ast.ExceptHandler))
        self.errors = {each.name for each in handlers} | {
            name for name, kind in kinds.items() if ERROR.search(kind)
        }
        told = function.name in TOLD
        self.names = {
            name for name, kind in kinds.items() if kind == "str" and (told or name in TOLD)
        }
        while more := {n for n, value in self.bound if self._is_said(value)} - self.names:
            self.names |= more

    def says(self) -> bool:
        if ast.unparse(self.function.returns or ast.Name("")) != "str":
            return False
        returns = (each for each in ast.walk(self.function) if isinstance(each, ast.Return))
        return any(each.value is not None and self._is_said(each.value) for each in returns)

    def hits(self) -> Iterator[Hit]:
        for node in ast.walk(self.function):
            texts, sought = _test(node)
            said = any(self._is_said(each) for each in texts)
            for_words = texts and any(self._has_words(each) for each in sought)
            if said or (for_words and not any(self._is_table(each) for each in texts)):
                assert isinstance(node, ast.expr | ast.Match)
                code = node.subject if isinstance(node, ast.Match) else node
                yield node.lineno, ast.unparse(code)

    def _is_said(self, node: ast.expr) -> bool:
        """Whether an expression is text for people, or a collection of it."""
        match node:
            case ast.Name(id=name):
                return name in self.names or name in WORDS
            case ast.Attribute(attr=name):
                return name in WORDS or self._is_error(node)
            case ast.Subscript(slice=ast.Constant(value=str(name))):
                return name in WORDS
            case ast.Subscript(value=value) | ast.Await(value=value) | ast.Starred(value=value):
                return self._is_said(value)
            case ast.Call(func=ast.Name(id="str"), args=[value]) | ast.FormattedValue(value=value):
                return self._is_error(value) or self._is_said(value)
            case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=name), *_]):
                return name in WORDS
            case ast.Call(func=ast.Attribute(value=value, attr=name)):
                return name in self.reader.sayers or self._is_said(value)
            case ast.Call(func=ast.Name(id=name)):
                return name in self.reader.sayers
            case ast.ListComp(elt=value) | ast.GeneratorExp(elt=value) | ast.SetComp(elt=value):
                return self._is_said(value)
            case ast.List(elts=values) | ast.JoinedStr(values=values) | ast.BoolOp(values=values):
                return any(self._is_said(each) for each in values)
            case ast.IfExp(body=one, orelse=other) | ast.BinOp(left=one, right=other):
                return self._is_said(one) or self._is_said(other)
        return False

    def _is_error(self, node: ast.expr) -> bool:
        """Whether it is an exception, or what one carries; its class and its code are values."""
        match node:
            case ast.Name(id=name):
                return name in self.errors or name == "error"
            case ast.Attribute(value=value, attr="args" | "orig" | "__cause__"):
                return self._is_error(value)
        return False

    def _is_table(self, node: ast.expr) -> bool:
        """Whether it is a collection of the module's, in which things are looked up whole."""
        return isinstance(node, ast.Name) and node.id in self.reader.constants

    def _has_words(self, node: ast.expr, deep: int = 4) -> bool:
        """Whether several words stand in a literal, or in one that its names are bound to."""
        inner: list[ast.expr] = []
        match node:
            case ast.Constant(value=str(text)):
                return SPACED.search(text) is not None
            case ast.Name(id=name) if deep:
                inner = [value for bound, value in self.bound if bound == name]
                inner += filter(None, [self.reader.constants.get(name)])
                return any(self._has_words(each, deep - 1) for each in inner)
            case ast.Tuple(elts=inner) | ast.List(elts=inner) | ast.Set(elts=inner):
                pass
            case ast.JoinedStr(values=inner):
                pass
            case ast.Call(func=ast.Attribute(attr="compile"), args=inner):
                pass
            case ast.Dict(keys=keys, values=values):
                inner = [*filter(None, keys), *values]
            case ast.Call(func=ast.Attribute(value=value, attr="items")):
                inner = [value]
            case ast.Subscript(value=value):
                inner = [value]
        return any(self._has_words(each, deep) for each in inner)


def _test(node: ast.AST) -> tuple[list[ast.expr], list[ast.expr]]:
    """The texts that a node tests and what it seeks in them; nothing where it is no such test."""
    match node:
        case ast.Call(func=ast.Attribute(value=text, attr=name), args=sought) if name in LOOKS:
            return [text], sought
        case ast.Call(func=ast.Attribute(value=pattern, attr=name), args=args) if name in SEARCHES:
            return args, [pattern, *args]
        case ast.Compare(left=sought, ops=[ast.In() | ast.NotIn()], comparators=[text]):
            return [text], [sought]
        case ast.Compare(left=one, ops=[ast.Eq() | ast.NotEq()], comparators=[other]):
            empty = any(
                isinstance(each, ast.Constant) and each.value == "" for each in (one, other)
            )
            return ([], []) if empty else ([one, other], [one, other])
        case ast.Match(subject=text):
            return [text], []
    return [], []


def _bound(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """Every name that these bind, with what it is bound to or goes through."""
    for node in nodes:
        match node:
            case ast.Assign(targets=[target, *_], value=value):
                pass
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                pass
            case ast.AugAssign(target=target, value=value):
                pass
            case ast.NamedExpr(target=target, value=value):
                pass
            case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                pass
            case _:
                continue
        yield from ((each.id, value) for each in ast.walk(target) if isinstance(each, ast.Name))


@cache
def found() -> dict[tuple[str, str], int]:
    """Every test in the package: its file and its code, and the line."""
    return {
        (path.relative_to(PACKAGE).as_posix(), code): line
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, code in Reader(path.read_text(encoding="utf-8")).hits()
    }


def test_no_decision_reads_a_sentence() -> None:
    tests = found()
    read = [f"{file}:{tests[file, code]}: {code}" for file, code in tests.keys() - ALLOWED]
    assert not sorted(read), "give it a type, a code or a field, and read that"


def test_what_is_allowed_is_there() -> None:
    assert not ALLOWED.keys() - found().keys()


# Code that stood here before, and its kind.
READS = [
    # A start was given up by how a step was worded, and percentages were read out of steps.
    'class W:\n    def step(self, text: str):\n        self.on = text.startswith("Starting")',
    'S = (("Starting the engine", 15.0),)\ndef percent(of: str):\n'
    "    for begins, low in S:\n        if of.startswith(begins): return low",
    'C = re.compile(r" (\\d+)/(\\d+)$")\ndef percent(step: str):\n    return C.search(step)',
    # A silent engine was one whose error began so.
    'S = "no answer"\nclass L:\n'
    "    async def _forget(self) -> str:\n        try: ...\n"
    "        except E as error: return str(error)\n"
    "    async def go(self):\n        silent = await self._forget()\n"
    "        return silent.startswith(S)",
    # The phase of an update, of log lines.
    'def f(logs):\n    lines = [str(each.get("message")) for each in logs]\n'
    '    return any(line.startswith("switching") for line in lines)',
    'def f(line):\n    phase, _, _ = str(line["message"]).partition(": ")',
    # Advice by what a library says, and its prefix taken off.
    "def f(said): return next(text for sign, text in ADVICE if sign in str(said))",
    'def f(issue): return issue["msg"].removeprefix("Value error, ")',
    'def f(keys):\n    try: ...\n    except E as e:\n        return "KEYS" in f"{e}"',
    # What else it might be.
    'def f(error): return str(error) == "gone"',
    'def f(why: ValueError): return re.match("[Nn]o", str(why))',
    'def f(error): return "gone" in error.args[0]',
    'def f(answer): return answer.reason != "ready"',
    'def f(text):\n    if "the engine has died" in text: ...',
    'def f(work):\n    match work.message:\n        case "done": ...',
]
READS_NOT = [
    'def f(error): return error.code == "Gone" or isinstance(error, Gone)',
    'def f(key): return key.startswith("ocid1.")',
    'def f(answer): return answer["status"] == "SUCCEEDED"',
    'def f(message): return message["type"] == "http.request"',
    'def f(reason): return reason or reason == ""',
    "def f(error): return [line.strip() for line in str(error).splitlines()]",
    'def f(error): return f"{error}; try again"',
    "def f(step: Step): return step is Step.DONE",
]


@pytest.mark.parametrize("source", READS)
def test_code_that_reads_a_sentence_is_found(source: str) -> None:
    assert len(Reader(source).hits()) == 1


@pytest.mark.parametrize("source", READS_NOT)
def test_code_that_reads_values_is_not(source: str) -> None:
    assert Reader(source).hits() == []
