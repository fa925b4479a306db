"""Whether the grammar that a request brings is one that an engine follows in bounded time.

xgrammar looks for the tokens that a grammar allows before each step of the whole batch, so what one
grammar costs delays every stream. That grows with the number of ways in which it reads one text: a
regular expression of 20 characters can take seconds for a token. Those are refused here; the
figures are CPU seconds with a vocabulary of 49,000 tokens (docs/reliability.md).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from math import inf
from operator import or_
from typing import Any

from pydantic_core import from_json

from stacked.errors import GrammarTooCostly
from stacked.serving.names import NESTED_REQUESTS

Tree = Mapping[str, Any]

_FIELDS = ("structured_outputs", "response_format", "tools", "text", "output_config")
# Fields that hold further parameters of the request.
_NESTED = (*NESTED_REQUESTS, "sampling_params")
# Values that a schema has as data, in which names mean nothing.
_DATA = frozenset({"const", "default", "enum", "examples", "example", "title", "description"})

_UNIONS = frozenset({"anyOf", "oneOf", "elements"})
_CLOSED = ("null", "boolean", "integer", "number")
_LENGTHS = (("minLength", "maxLength"), ("minItems", "maxItems"))
# Of structural tags, which may also hold one another.
_REPEATING = ("star", "plus", "repeat")

_EXPRESSION, _EXPRESSIONS = 2048, 16 * 1024
"""Characters of a regular expression, and of all in a request. To read 16 KiB takes 50 ms."""
_NODES = 4000
"""Objects of all schemas of a request; OpenAI takes 5000 properties."""
_DEPTH = 64
"""As deep as vLLM takes schemas."""
_OPTIONAL = 500
"""Properties of one object that may be left out, each next to every later one: 0.6 s, and 500 more
take ten times as long."""
_BRANCHES = 64
"""Alternatives that begin alike. All are followed at once, in 14 ms a token for 100 objects, and in
123 ms for 132 arrays of texts of a given length."""
_COUNTS = 32
"""Different counts of repeats, such as lengths of texts: to compile one takes 0.3 s, or 2 s."""
_UNCOUNTED = 16
"""Up to here, repeats are written out."""
_REPEATS = 4
"""How often a part of a regular expression may be repeated that may end in several places: each end
is followed on its own, for each count. `(.{0,20}[a-z]{3}){0,8}` takes 1.3 s for its 21st token,
`([^,]?){1,50}` 1.2 s for its sixth, `(a*)*(a*)*(a*)*b` 0.16 s for its 200th, and each later one
more."""
_LOOSE = 8
"""How often one may be counted that has no sign of its end: `([^,]{2}){0,400}` takes 0.24 s."""

# What stands for all characters when two parts are compared: a bit for each, in an integer.
_SAMPLE = "".join(map(chr, range(0x180))) + "中😀"
_BITS = {character: 1 << at for at, character in enumerate(_SAMPLE)}
_ALL = (1 << len(_SAMPLE)) - 1
_OTHERS = _BITS["中"] | _BITS["😀"]


def check_grammars(tree: Tree) -> None:
    """Raise GrammarTooCostly for a request with such a schema, expression or grammar."""
    walk = _Walk()
    nested = (tree.get(name) for name in _NESTED)
    for each in (tree, *(inner for inner in nested if isinstance(inner, dict))):
        for name in _FIELDS:
            walk.value(name, each.get(name), 0)


class _Walk:
    """Through everything that a request's grammars are made of, whatever names the schema."""

    def __init__(self) -> None:
        self._nodes = self._branches = self._characters = 0
        self._counts: set[tuple[Any, Any]] = set()

    def value(self, name: str, value: Any, depth: int) -> None:
        if isinstance(value, str):
            self._text(name, value, depth)
        elif isinstance(value, list):
            if name in _UNIONS:
                self._branches += _alike(value)
                _most(self._branches, _BRANCHES, "alternatives that may begin alike")
            for each in value:
                self.value("", each, depth + 1)
        elif isinstance(value, dict):
            self._nodes += 1
            _most(self._nodes, _NODES, "objects in its schemas")
            _most(depth, 2 * _DEPTH, "levels")
            self._object(value, depth)

    def _object(self, node: Tree, depth: int) -> None:
        if node.get("type") in _REPEATING:
            raise _unbounded("a structural tag that repeats another")
        properties, required = node.get("properties"), node.get("required")
        if isinstance(properties, dict):
            needed = {str(name) for name in required} if isinstance(required, list) else set()
            _most(len(properties.keys() - needed), _OPTIONAL, "optional properties of one object")
        patterns = node.get("patternProperties")
        for pattern in patterns if isinstance(patterns, dict) else ():
            self._expression(pattern)
        self._count({(node.get(least), node.get(most)) for least, most in _LENGTHS})
        for name, value in node.items():
            if name not in _DATA:
                self.value(name, value, depth + 1)

    def _text(self, name: str, text: str, depth: int) -> None:
        if name in ("pattern", "regex", "whitespace_pattern"):
            self._expression(text)
        elif name == "grammar":
            raise _unbounded("a grammar in EBNF or Lark")
        elif name in ("json", "structural_tag", "schema"):  # JSON within a text
            try:
                inner = from_json(text)
            except ValueError:
                return  # refused by vLLM
            self.value("", inner, depth + 1)

    def _expression(self, text: str) -> None:
        self._characters += len(text)
        _most(self._characters, _EXPRESSIONS, "characters in its regular expressions")
        self._count(check_expression(text))

    def _count(self, counts: Collection[tuple[Any, Any]]) -> None:
        for count in counts:
            numbers = [each for each in count if isinstance(each, int | float) and each != inf]
            if max(numbers, default=0) > _UNCOUNTED:
                self._counts.add(count)
        _most(len(self._counts), _COUNTS, "different counts of repeats")


def _alike(branches: list[Any]) -> int:
    """How many alternatives may begin alike, 0 if none: by their types, or a property's value."""
    kinds: Counter[str] = Counter()
    marks: dict[str, set[str]] = {}
    for branch in branches:
        node = branch if isinstance(branch, dict) else {}
        if "const" in node or "enum" in node or node.get("type") in _CLOSED:
            continue
        kinds[str(node.get("type", ""))] += 1
        properties = node.get("properties")
        for name, value in properties.items() if isinstance(properties, dict) else ():
            if isinstance(value, dict) and isinstance(value.get("const"), str):
                marks.setdefault(name, set()).add(value["const"])
    count = max(kinds.values(), default=0) + (kinds[""] if len(kinds) > 1 else 0)
    told_apart = any(len(values) == sum(kinds.values()) for values in marks.values())
    return 0 if count < 2 or told_apart else count


def _most(found: int, most: int, what: str) -> None:
    if found > most:
        raise GrammarTooCostly(
            f"a grammar or schema of the request has {found} {what}; at most {most} are followed"
        )


def _unbounded(what: str) -> GrammarTooCostly:
    return GrammarTooCostly(
        f"{what} may read one text in any number of ways, so requests may not bring one here; use "
        "a JSON schema or a regular expression, or have server.trust_request_grammars set"
    )


# -- regular expressions -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of an expression: in how many places of a text it may end, and what stands in it."""

    ends: float = 1
    characters: int = 0
    single: bool = False
    """One character, as it stands."""
    counted: bool = False
    """Whether repeats of it are counted, for each place where it may begin."""
    loose: bool = False
    """Whether nothing in a text shows where it ends."""
    first: int | None = None

    @property
    def begins(self) -> int:
        """The characters with which it may begin."""
        return self.characters if self.first is None else self.first


@lru_cache(maxsize=256)
def check_expression(text: str) -> frozenset[tuple[float, float]]:
    """The counts of its repeats. Raises GrammarTooCostly if it reads a text in very many ways."""
    _most(len(text), _EXPRESSION, "characters in a regular expression")
    reader = _Reader(text)
    reader.alternatives(0)
    return frozenset(reader.counts)


class _Reader:
    """Reads an expression from left to right; what it does not know may be anything."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._last = text.rfind("]")
        self.counts: set[tuple[float, float]] = set()

    def alternatives(self, depth: int) -> _Part:
        """The parts up to the end of a group."""
        _most(depth, _DEPTH, "groups within each other")
        branches = [self._sequence(depth)]
        while self._take("|"):
            branches.append(self._sequence(depth))
        self._take(")")
        single = all(part.single for part in branches)
        ends = 1 if single else sum(part.ends for part in branches)
        if all(part.ends == 1 for part in branches) and _begin_apart(branches):
            ends = 1
        first = reduce(or_, (part.begins for part in branches))
        return _Part(ends, single=single, first=first, **_of_all(branches))

    def _sequence(self, depth: int) -> _Part:
        parts = list(self._parts(depth))
        if len(parts) < 2:
            return parts[0] if parts else _Part()
        _check_neighbours(parts)
        delimited = _is_delimited(parts)
        ends = 1 if delimited else 1 + sum(part.ends - 1 for part in parts)
        first = parts[0].begins if parts[0].ends == 1 else None
        return _Part(ends, first=first, **{**_of_all(parts), "loose": not delimited})

    def _parts(self, depth: int) -> Iterator[_Part]:
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            part = self._atom(depth)
            while (count := self._count()) is not None:
                self.counts.add(count)
                part = _repeated(part, *count)
            yield part

    def _atom(self, depth: int) -> _Part:
        if self._take("("):
            prefix = re.compile(r"\?(P?<\w+>|<?[=!:>]|[\w-]*:)").match(self._text, self._at)
            self._at = prefix.end() if prefix else self._at
            return self.alternatives(depth + 1)
        # A class that nothing closes is not looked for again and again.
        if self._at > self._last and self._take("["):
            return _Part(1, _ALL, True)
        atom = _ATOM.match(self._text, self._at)
        assert atom is not None, "any character is one"
        self._at = atom.end()
        if atom[0] in ("^", "$", r"\b", r"\B"):
            return _Part()
        return _Part(1, _characters(atom[0]), True)

    def _count(self) -> tuple[float, float] | None:
        """The least and the most repeats, None without a quantifier."""
        found = _QUANTIFIER.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        if found["sign"]:
            return 0, 1 if found["sign"] == "?" else inf
        least = float(found["least"] or 0)
        return least, float(found["most"] or "inf") if found["comma"] else least

    def _take(self, character: str) -> bool:
        taken = self._text.startswith(character, self._at)
        self._at += taken
        return taken


_ATOM = re.compile(
    r"\\(?:u\{[0-9a-fA-F]+\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[pP]\{\w+\}|.)"
    r"|\[\^?\]?(?:\\.|[^\]\\])*\]|.",
    re.DOTALL,
)
# Operations on sets within a class, of which Python warns that it does not have them.
_SETS = re.compile(r"\[|--|&&|~~|\|\|")
_QUANTIFIER = re.compile(
    r"(?:(?P<sign>[*+?])|\{(?P<least>[0-9]{0,9})(?P<comma>,?)(?P<most>[0-9]{0,9})\})[?+]?"
)


def _repeated(part: _Part, least: float, most: float) -> _Part:
    few = 1 if part.counted else _REPEATS if part.ends > 2 else _LOOSE
    if (part.ends > 1 and most > few) or (part.loose and _LOOSE < most < inf):
        raise GrammarTooCostly(
            "a regular expression repeats a part whose end nothing shows more than "
            f"{few} times, and so reads one text in very many ways. "
            "End the part with a character that is nowhere else in it, or repeat it less often"
        )
    ends = most - least + 1 if part.ends == 1 else 1 + (part.ends - 1) * most
    return _Part(
        ends,
        part.characters,
        counted=part.counted or _UNCOUNTED < most < inf or (part.ends > 1 and most > 1),
        loose=part.loose or most > 1,
        first=part.begins,
    )


def _of_all(parts: list[_Part]) -> dict[str, Any]:
    """What holds for several parts together."""
    return {
        "characters": reduce(or_, (part.characters for part in parts)),
        "counted": any(part.counted for part in parts),
        "loose": any(part.loose for part in parts),
    }


def _begin_apart(branches: list[_Part]) -> bool:
    """Whether the first character tells which of them it is."""
    firsts = [part.begins for part in branches]
    return all(firsts) and sum(map(int.bit_count, firsts)) == reduce(or_, firsts).bit_count()


def _check_neighbours(parts: list[_Part]) -> None:
    """Refuse repeats that are counted from each of the places where a part before them may end."""
    before = _Part()  # all that may still go on
    for part in parts:
        apart = not part.characters & before.characters
        if part.ends == 1:
            before = _Part() if apart else before
            continue
        counted = part.counted or before.counted
        if not apart and counted and max(part.ends, before.ends) > 2:
            raise GrammarTooCostly(
                f"a regular expression counts more than {_UNCOUNTED} repeats next to a part "
                "that may end in several places and has the same characters, and so reads one "
                "text in very many ways. Put a character between them that is in neither"
            )
        ends = max(part.ends, before.ends)
        before = _Part(ends, part.characters | before.characters, counted=counted)


def _is_delimited(parts: list[_Part]) -> bool:
    """Whether the first or last character of a part can be nowhere else in it."""
    for edge, others in ((parts[-1], parts[:-1]), (parts[0], parts[1:])):
        if edge.single and not any(edge.characters & part.characters for part in others):
            return True
    return False


@lru_cache(maxsize=1024)
def _characters(atom: str) -> int:
    if _SETS.search(atom, 1):
        return _ALL
    try:
        return sum(_BITS[each] for each in re.findall(atom, _SAMPLE, re.DOTALL)) or _OTHERS
    except re.error:
        return _ALL
