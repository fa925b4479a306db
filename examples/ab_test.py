"""An A/B test of two fine-tunes with the plain `openai` client, until one of them is surely better.

    stacked serve configs/experiment.yaml          # in one terminal
    python examples/ab_test.py                     # in another

Simulated users ask the experiment's key for SQL. The server gives each of them one arm; whether the
answer was right goes back as feedback, and the server says which arm is better, and how sure that
is. It needs `pip install openai`; nothing of Stacked is imported.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, OpenAIError

QUESTIONS = Path(__file__).resolve().parent.parent / "evals" / "sql.jsonl"


async def ask(client: AsyncOpenAI, key: str, user: str, question: dict[str, Any]) -> None:
    """Ask as this user, and report whether the answer was the expected one."""
    answer = await client.chat.completions.create(
        model=key,
        messages=question["messages"],
        temperature=0,
        max_tokens=64,
        extra_headers={"experiment-unit": user},
    )
    text = answer.choices[0].message.content or ""
    feedback = {
        "id": answer.id,
        "metric": "correct",
        "value": text.strip().rstrip(";") == question["expected"],
    }
    await client.post("/feedback", cast_to=object, body=feedback)


async def result(client: AsyncOpenAI, key: str) -> dict[str, Any]:
    """The experiment as the server reports it, with this one metric."""
    url = client.base_url.join(f"/stacked/experiments/{key}?metric=correct")
    found: Any = await client.get(str(url), cast_to=object)
    return dict(found)


def arms_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each arm with its mean, its difference from the first one, and the verdict on that."""
    metrics = report["phase"]["metrics"]
    return list(metrics[0]["arms"]) if metrics else []


def line(report: dict[str, Any], users: int) -> str:
    """How it stands."""
    means = "  ".join(
        f"{arm['arm']} {arm['mean']:.2f} ({arm['units']})"
        for arm in arms_of(report)
        if arm["mean"] is not None
    )
    return f"{users:5} users   {means}"


def winner_of(report: dict[str, Any]) -> str | None:
    """The arm that is surely the best; None while that is open."""
    first, *others = arms_of(report) or [{"arm": ""}]
    better = [arm for arm in others if arm["verdict"] == "better"]
    if better:
        return str(max(better, key=lambda arm: arm["mean"])["arm"])
    worse = [arm["verdict"] == "worse" for arm in others]
    return str(first["arm"]) if worse and all(worse) else None


async def test(arguments: argparse.Namespace) -> int:
    questions = [json.loads(text) for text in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    endless = itertools.cycle(questions)
    client = AsyncOpenAI(base_url=f"{arguments.url}/v1", api_key=arguments.api_key, timeout=300)
    async with client:
        for users in range(arguments.step, arguments.users + 1, arguments.step):
            new = range(users - arguments.step, users)
            asking = [ask(client, arguments.key, f"user-{n}", next(endless)) for n in new]
            await asyncio.gather(*asking)
            report = await result(client, arguments.key)
            print(line(report, users), flush=True)
            if winner := winner_of(report):
                print("\n".join(report["phase"]["metrics"][0]["sentences"]))
                print(f"winner: {winner}")
                print(f"Keep it:  stacked experiment promote {arguments.key} {winner}")
                return 0
    print("Nothing is certain yet; let more users ask (--users).")
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default=os.environ.get("STACKED_URL", "http://127.0.0.1:8080"))
    parser.add_argument("--api-key", default=os.environ.get("STACKED_API_KEY", "none"))
    parser.add_argument("--key", default="sql", help="the experiment's inference key")
    parser.add_argument("--users", type=int, default=1000, help="at most so many users ask")
    parser.add_argument("--step", type=int, default=20, help="users who ask at once, then a look")
    arguments = parser.parse_args()
    try:
        return asyncio.run(test(arguments))
    except OpenAIError as error:
        sys.exit(f"{arguments.url}: {error}")


if __name__ == "__main__":
    sys.exit(main())
