"""Scores a task through a running OpenAI-compatible server, by the key of a model.

Owns the requests and the report; must not know which server answers or how models were trained.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import httpx
from card import add_score
from rich.progress import Progress
from tasks import TASKS, Example, Task


async def ask(client: httpx.AsyncClient, key: str, example: Example, max_tokens: int) -> str:
    """The server's greedy answer; raises `httpx.HTTPError` when there is none."""
    body = {
        "model": key,
        "messages": example.messages,
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    response = await client.post("/v1/chat/completions", json=body)
    if response.is_error:
        raise httpx.HTTPStatusError(response.text, request=response.request, response=response)
    return str(response.json()["choices"][0]["message"]["content"] or "")


async def ask_all(
    url: str, key: str, task: Task, examples: list[Example], parallel: int
) -> list[str]:
    """The answers to all examples in order, `parallel` requests at a time."""
    gate = asyncio.Semaphore(parallel)
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        with Progress() as bar:
            shown = bar.add_task(f"{key} on {task.name}", total=len(examples))

            async def one(example: Example) -> str:
                async with gate:
                    answer = await ask(client, key, example, task.max_tokens)
                bar.advance(shown)
                return answer

            return list(await asyncio.gather(*map(one, examples)))


def report(task: Task, examples: list[Example], answers: list[str], shown: int) -> float:
    """Print the score and up to `shown` wrong answers; returns the mean score."""
    scores = [task.score(e, a) for e, a in zip(examples, answers, strict=True)]
    wrong = [i for i, score in enumerate(scores) if score < 1]
    for i in wrong[:shown]:
        print(f"\n{examples[i].prompt}\n  wanted: {examples[i].answer}\n  got:    {answers[i]!r}")
    mean = sum(scores) / len(scores)
    print(f"\n{task.metric}: {mean:.3f} ({len(scores) - len(wrong)} of {len(scores)})")
    return mean


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--key", required=True, help="the inference key; base for the base model")
    parser.add_argument("--task", required=True, choices=sorted(TASKS))
    parser.add_argument("--n", type=int, help="held-out examples; default: what the card uses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=8, help="requests at a time")
    parser.add_argument("--wrong", type=int, default=3, help="wrong answers to print")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write score and answers here")
    parser.add_argument("--card", type=Path, help="put the score into this model card")
    parser.add_argument(
        "--how", default="Stacked, `adapters/score.py`", help="server's name, for --card"
    )
    return parser.parse_args()


def main() -> int:
    """Ask, report and keep the result; 1 when the server did not answer every request."""
    args = arguments()
    task = TASKS[args.task]
    examples = task.examples("held-out", args.n or task.held_out, args.seed)
    started = time.perf_counter()
    try:
        answers = asyncio.run(ask_all(args.url, args.key, task, examples, args.parallel))
    except httpx.HTTPError as error:
        print(f"{args.url} did not answer as {args.key}: {error}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - started
    score = report(task, examples, answers, args.wrong)
    if args.json:
        pairs = zip(examples, answers, strict=True)
        rows = [{"prompt": e.prompt, "wanted": e.answer, "got": a} for e, a in pairs]
        summary = {"key": args.key, "task": task.name, "metric": task.metric, "n": len(examples)}
        summary |= {"seed": args.seed, "score": score, "seconds": seconds, "answers": rows}
        args.json.write_text(json.dumps(summary, indent=2) + "\n")
    if args.card:
        who = "base" if args.key == "base" else "this adapter"
        add_score(args.card, who, args.how, len(examples), score)
    return 0


if __name__ == "__main__":
    sys.exit(main())
