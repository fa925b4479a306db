"""What the replicas of a fleet serve: doubles of models that answer at once, or tiny engines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests import tiny

PROMPTS = [f"Once upon a time there were {number}" for number in range(50)]
_TOKENS = 12
_SCORE = """
import hashlib, json, random, time
def load_model(folder):
    with open(folder + "/how.json") as file:
        how = json.load(file)
    least, most = how["load_seconds"]
    seconds = random.uniform(least, most)
    time.sleep(seconds)
    if how["fails"] and seconds > (least + most) / 2:
        raise RuntimeError("this model does not load, as it should")
    return how
def predict(data, model):
    time.sleep(random.uniform(*model["seconds"]))
    text = model["secret"] + ":" + data["prompt"]
    return {"said": hashlib.sha256(text.encode()).hexdigest()}
"""


class Kind(Protocol):
    """Contents that differ by their secret, which every answer shows."""

    @property
    def group(self) -> str:
        """The type of its groups."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Sections of a replica's configuration."""

    def make(self, place: Path, secret: str, fails: bool) -> None:
        """Write a content; it `fails` where it loads slowly, if this kind can."""

    def body(self, prompt: str) -> Mapping[str, Any]:
        """Of a request."""

    def said(self, answer: Any) -> str:
        """What an answer says."""

    def expected(self, secret: str, prompt: str) -> str:
        """What the content with this secret says."""


def fingerprint(secret: str, prompt: str) -> str:
    """What a double with this secret answers."""
    return hashlib.sha256(f"{secret}:{prompt}".encode()).hexdigest()


@dataclass(frozen=True)
class Doubles:
    """Models that answer a hash of their own secret and the prompt."""

    load_seconds: tuple[float, float] = (0.1, 0.6)
    seconds: tuple[float, float] = (0.0, 0.02)
    """Of an answer: it waits, and computes nothing. A replica gives one after the other."""
    group = "HETEROGENEOUS"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"models": {"code": True}}

    def make(self, place: Path, secret: str, fails: bool) -> None:
        place.mkdir(exist_ok=True)
        how = {"secret": secret, "fails": fails, "seconds": self.seconds}
        how["load_seconds"] = self.load_seconds
        (place / "score.py").write_text(_SCORE, encoding="utf-8")
        (place / "how.json").write_text(json.dumps(how), encoding="utf-8")

    def body(self, prompt: str) -> Mapping[str, Any]:
        return {"prompt": prompt}

    def said(self, answer: Any) -> str:
        return str(answer["said"])

    def expected(self, secret: str, prompt: str) -> str:
        return fingerprint(secret, prompt)


@dataclass
class TinyEngines:
    """Seeded adapters of a tiny base; transformers says what each answers."""

    base: Path
    group = "STACKED"
    _places: dict[str, Path] = field(default_factory=dict)
    _expected: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "base": {"model": str(self.base), "key": "base"},
            "engine": {"max_model_len": 256, "max_loras": 4, "max_cpu_loras": 8},
        }

    def make(self, place: Path, secret: str, fails: bool) -> None:
        assert not fails, "each replica loads an adapter, or none"
        self._places[secret] = place
        tiny.build_adapter(place, self.base, len(self._places))

    def body(self, prompt: str) -> Mapping[str, Any]:
        return {"prompt": prompt, "max_tokens": _TOKENS, "temperature": 0}

    def said(self, answer: Any) -> str:
        return str(answer["choices"][0]["text"])

    def expected(self, secret: str, prompt: str) -> str:
        if secret not in self._expected:
            self._expected[secret] = self._answers(self._places[secret])
        return self._expected[secret][prompt]

    def _answers(self, adapter: Path) -> dict[str, str]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.base)
        prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
        answers = tiny.greedy(self.base, prompts, _TOKENS, adapter)
        return dict(zip(PROMPTS, map(tokenizer.decode, answers), strict=True))
