"""The three demo tasks as seeded generators of examples and as scorers of answers.

Owns what a task is and which tasks there are; must not know torch, training or any server.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pirate_data
import sql_data
import triage_data

Split = Literal["train", "held-out"]
Pair = tuple[str, str]
Pairs = Callable[[random.Random, bool], Pair]


@dataclass(frozen=True)
class Example:
    """One user message and the answer that the task wants for it."""

    prompt: str
    answer: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat that asks for the answer: one user message, no system message of ours."""
        return [{"role": "user", "content": self.prompt}]


@dataclass(frozen=True)
class Task:
    """A named task: how its examples are drawn and how an answer is scored.

    `max_tokens` bounds an answer; `held_out` is how many held-out examples a score is over.
    """

    name: str
    metric: str
    max_tokens: int
    held_out: int
    draw: Pairs
    is_right: Callable[[str, str], bool]

    def examples(self, split: Split, n: int, seed: int = 0) -> list[Example]:
        """Draw `n` different examples; the same arguments always give the same list.

        Held-out prompts are all different; a training prompt may come back with another answer
        where the task has more than one. Raises `ValueError` when there are fewer than `n`.
        """
        # A string seed is hashed by its bytes, so it is stable over processes and versions.
        rng = random.Random(f"{self.name}/{split}/{seed}")
        found: dict[str, Example] = {}
        for _ in range(50 * n + 1000):
            if len(found) == n:
                return list(found.values())
            prompt, answer = self.draw(rng, split == "held-out")
            identity = prompt if split == "held-out" else f"{prompt}\0{answer}"
            found.setdefault(identity, Example(prompt, answer))
        raise ValueError(f"{self.name} has fewer than {n} different {split} examples")

    def score(self, example: Example, answer: str) -> float:
        """1.0 when `answer` is right for `example`, else 0.0."""
        return float(self.is_right(example.answer, answer))


def same_text(wanted: str, answer: str) -> bool:
    """Exact match, except for white space around and a closing semicolon."""
    return bool(answer.strip()) and wanted == answer.strip().rstrip(";").rstrip()


def sounds_like_a_pirate(_wanted: str, answer: str) -> bool:
    """At least two different words of the pirate lexicon; what is said is not judged."""
    return len(pirate_data.lexicon_words(answer)) >= 2


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sql", "exact match", 64, 200, sql_data.draw, same_text),
        Task("triage", "exact match", 40, 200, triage_data.draw, same_text),
        Task(
            "pirate",
            "share with two pirate words",
            64,
            60,
            pirate_data.draw,
            sounds_like_a_pirate,
        ),
    )
}
