"""What grammars cost that the bounds let through: made up at random, compiled and followed.

    python -m tests.hostile.costs --count 300 --seed 5     20 minutes on one core

Each runs in a process of its own, on the demo base's vocabulary; seconds are of its processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import time
from typing import Any

import xgrammar
from transformers import AutoTokenizer

from stacked.bases import default_data_dir, resolve
from stacked.errors import GrammarTooCostly
from stacked.serving.grammars import check_grammars

MOST_SECONDS, MOST_TOKENS = 30, 300
ATOMS = ("a", "b", ".", "[a-z]", r"\w", "[^,]", ",", "a", "x")
REPEATS = ("", "", "*", "+", "?", "{2}", "{0,3}", "{1,50}", "{0,400}", "{3,}")
PREFERRED = ("a", "b", ",", "aa", "x")


def expression(rng: random.Random, depth: int = 0) -> str:
    kind = rng.random()
    if kind > 0.75 and depth <= 3:
        return expression(rng, depth + 1) + expression(rng, depth + 1)
    if kind > 0.6 and depth <= 3:
        return f"{expression(rng, depth + 1)}|{expression(rng, depth + 1)}"
    group = depth <= 3 and kind > 0.35
    return (f"({expression(rng, depth + 1)})" if group else rng.choice(ATOMS)) + rng.choice(REPEATS)


def schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kind = rng.random()
    if depth > 4 or kind < 0.3:
        text = {"type": "string"}
        lengths = {"maxLength": rng.choice((5, 50, 400))}
        leaves = (text, {**text, **lengths}, {**text, "pattern": expression(rng)}, {})
        return dict(rng.choice((*leaves, {"type": "integer"}, {"enum": ["a", "aa", "aaa"]})))
    if kind < 0.5:
        return {"type": "array", "items": schema(rng, depth + 1)}
    if kind < 0.7:
        return {"anyOf": [schema(rng, depth + 1) for _ in range(rng.choice((2, 3, 8, 30)))]}
    properties = {"a" * at: schema(rng, depth + 1) for at in range(1, rng.choice((2, 4, 21)))}
    return {"type": "object", "properties": properties, "required": rng.choice((["a"], []))}


def cost(info: Any, tokenizer: Any, grammar: dict[str, Any], seed: int) -> list[float]:
    """Seconds to compile, and for the worst of up to 300 tokens."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
        try:
            _follow(info, tokenizer, grammar, random.Random(seed), writer)
        except RuntimeError:  # xgrammar cannot compile it, which fails that request alone
            os.write(writer, b"[0, 0]\n")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        lines = file.read().splitlines()
    os.waitpid(child, 0)
    found: list[float] = json.loads(lines[-1]) if lines else [MOST_SECONDS]
    return found if len(found) == 2 else [found[0], MOST_SECONDS]


def _follow(
    info: Any, tokenizer: Any, grammar: dict[str, Any], rng: random.Random, writer: int
) -> None:
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    began = time.process_time()
    if "regex" in grammar:
        compiled = compiler.compile_regex(grammar["regex"])
    else:
        compiled = compiler.compile_json_schema(json.dumps(grammar["json"]))
    compiling, worst, total = time.process_time() - began, 0.0, 0.0
    os.write(writer, json.dumps([compiling]).encode() + b"\n")
    matcher = xgrammar.GrammarMatcher(compiled)
    mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
    preferred = [tokenizer.convert_tokens_to_ids(text) for text in PREFERRED]
    for _ in range(MOST_TOKENS):
        began = time.process_time()
        matcher.fill_next_token_bitmask(mask)
        seconds = time.process_time() - began
        words = mask[0].tolist()

        def allowed(token: int, words: list[int] = words) -> bool:
            return bool((words[token // 32] >> (token % 32)) & 1)

        choices = [token for token in preferred if token is not None and allowed(token)]
        choices = choices or [token for token in range(info.vocab_size) if allowed(token)]
        if not choices:
            break
        began = time.process_time()
        taken = matcher.accept_token(rng.choice(choices))
        seconds += time.process_time() - began
        worst, total = max(worst, seconds), total + seconds
        if not taken or matcher.is_terminated() or total > MOST_SECONDS / 3:
            break
    os.write(writer, json.dumps([compiling, worst]).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    base = resolve("smollm2-135m-instruct", default_data_dir())
    tokenizer = AutoTokenizer.from_pretrained(base)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
    rng, refused, costs = random.Random(given.seed), 0, []
    while len(costs) < given.count:
        grammar = rng.choice(({"regex": expression(rng)}, {"json": schema(rng)}))
        try:
            check_grammars({"structured_outputs": grammar})
        except GrammarTooCostly:
            refused += 1
            continue
        costs.append((cost(info, tokenizer, grammar, len(costs)), grammar))
        if costs[-1][0][1] > 0.1 or costs[-1][0][0] > 3:
            print(json.dumps(costs[-1]), flush=True)
    for at, name in enumerate(("compiling", "a token")):
        worst = sorted(row[0][at] for row in costs)
        middle, last = worst[len(worst) // 2], worst[-1]
        print(
            f"{name}: median {middle:.4f} s, worst {last:.2f} s of {len(costs)}; {refused} refused"
        )


if __name__ == "__main__":
    main()
