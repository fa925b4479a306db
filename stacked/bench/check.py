"""The judge of a storm: which answers, refusals and cuts a LIVE update may cause, and which not.

Pure: from what clients saw, and when each version may have served.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]
BASE = "base"
"""The `model-digest` header of an answer of the base."""

_ABSENT = ("KeyUnknown", "KeyRemoved", "DrainExpired")


@dataclass(frozen=True, slots=True)
class Version:
    """One generation: what its keys mean, and when it may have served, in seconds of one clock.

    `began`: its update was requested, so nothing earlier can be of it. `replaced`: the switch away
    from it was acknowledged, so nothing admitted later may be of it.
    """

    generation: int
    group: int
    keys: Mapping[str, str]
    """Inference key -> content digest, the base's key too."""
    began: float
    replaced: float = math.inf

    def may_serve(self, since: float, until: float) -> bool:
        return self.began <= until and self.replaced >= since


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got for one request. `whole` is False if the client itself disconnected."""

    key: str
    prompt: int
    sent: float
    ended: float
    digest: str
    generation: int
    tokens: Tokens
    whole: bool
    said_key: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error in place of an answer, or in the middle of one."""

    key: str
    sent: float
    ended: float
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise. `kind` is error, key, dead, stale, wrong, mixed or update."""

    kind: str
    text: str


References = Mapping[tuple[int, str, int], Tokens]
"""(group, content digest, prompt) -> what a fresh server of that group alone answers."""


def judge(
    answers: Sequence[Answer],
    refusals: Sequence[Refusal],
    versions: Sequence[Version],
    references: References,
) -> list[Violation]:
    """Every broken promise, at most one for each answer or refusal."""
    by_generation = {version.generation: version for version in versions}
    found = [_answer(answer, by_generation, references) for answer in answers]
    found += [_refusal(refusal, versions) for refusal in refusals]
    return [each for each in found if each is not None]


def _answer(
    answer: Answer, versions: Mapping[int, Version], references: References
) -> Violation | None:
    version = versions.get(answer.generation)
    name = f"{answer.key!r} of generation {answer.generation}"
    if version is None:
        return Violation("dead", f"{name}: no such generation was ever served")
    if answer.sent > version.replaced:
        late = answer.sent - version.replaced
        return Violation(
            "stale", f"{name}: sent {late:.3f} s after the switch away was acknowledged"
        )
    if answer.ended < version.began:
        return Violation("dead", f"{name}: ended before that generation was requested")
    meant = version.keys.get(answer.key)
    if meant is None or answer.digest != meant or answer.said_key != answer.key:
        said = f"{answer.said_key!r} {answer.digest}"
        return Violation("key", f"{name}: headers name {said}, the key means {meant}")
    return _tokens(answer, version.group, name, references)


def _tokens(answer: Answer, group: int, name: str, references: References) -> Violation | None:
    """Compare with the reference, token by token; after a client's own cut only the beginning."""
    expected = references[group, answer.digest, answer.prompt]
    got = answer.tokens
    if got == (expected if answer.whole else expected[: len(got)]):
        return None
    known = [
        (digest, tokens)
        for (_, digest, prompt), tokens in references.items()
        if prompt == answer.prompt
    ]
    same = (digest for digest, tokens in known if tokens == got and digest != answer.digest)
    if other := next(same, None):
        return Violation("wrong", f"{name}: this is what {other} answers, not {answer.digest}")
    shared = max(_shared(got, tokens) for _, tokens in known)
    if 0 < shared < len(got):
        said = f"{shared} of {len(got)} tokens are of one version, the rest of none"
        return Violation("mixed", f"{name}: {said}: {got}")
    return Violation("wrong", f"{name}: {got} is not {expected}")


def _shared(one: Tokens, other: Tokens) -> int:
    """The length of the common beginning of two answers, in tokens."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _refusal(refusal: Refusal, versions: Sequence[Version]) -> Violation | None:
    """A key may be refused as absent only if a version that may have served has no such key."""
    possible = [v for v in versions if v.may_serve(refusal.sent, refusal.ended)]
    if refusal.code in _ABSENT and any(refusal.key not in v.keys for v in possible):
        return None
    served = ", ".join(str(v.generation) for v in possible)
    message = f"{refusal.key!r} got {refusal.code} ({refusal.message}) while {served} served"
    return Violation("error", message)
