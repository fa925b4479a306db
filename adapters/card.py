"""The model card of a demo adapter: written by training, extended by scoring.

Owns the card's words and its table of scores; must not know how models are trained or asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import TASKS, Task

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Words:
    """What a card says about its task: what it does, what the data is, where it ends."""

    about: str
    data: str
    limits: str


WORDS: dict[str, Words] = {
    "sql": Words(
        """
Turns a compact schema and a question in English into one SQL query, on one line.""",
        """
Each example draws one or two random tables (a name, 2 to 4 columns) and one of seven query shapes:
select with a condition, two conditions, count, top-k, aggregate, group, and a join of two tables.
Held-out examples use the same shapes and sentence templates, but only table names, column names,
values and numbers that no training example has.""",
        """
It knows these seven shapes, these sentence templates and plain English column names. Freely worded
questions, sub-queries, dates, negation and longer schemas are outside what it saw. Joins are the
weakest shape (v2 has 7 of the 18 held-out ones right); the other misses of v2 are names and values
copied wrongly. Check a query before running it, and never run it with rights to write.""",
    ),
    "triage": Words(
        """
Turns a short support ticket into one line of JSON with the keys `team` (billing, accounts,
technical, sales, feedback), `priority` (high, medium, low) and `product` (mobile, web, desktop,
api).""",
        """
A ticket is put together from a sentence about the matter (with the product's name in it), a
sentence about how urgent it is, a greeting and a name. Held-out tickets use only sentences, product
names and people that no training ticket has. The prompt names the keys, not the labels, so the base
cannot know the labels: its score says that the task is not in it, not that it cannot classify.""",
        """
The labels are fixed, and a ticket that says nothing about one of them is outside the data, as are
long, mixed or angry ones. The JSON is learnt, not enforced: use the server's structured output
where it must parse.""",
    ),
    "pirate": Words(
        """
Answers small questions and remarks in pirate speech.""",
        """
Plain short answers (small talk, capitals, opposites, colours, sums) are turned into pirate speech
by word rules, with a drawn opening and ending. Held-out prompts are other questions and remarks
than those trained on. The score counts answers with at least two different words of a fixed pirate
lexicon, which is in the same file.""",
        """
The score measures style alone: whether an answer is true is not judged, and a model of this size is
often wrong. Long or serious questions are outside what it saw.""",
    ),
}


def write_card(out: Path, recipe: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write `out`/README.md from the recipe's fields and what training measured.

    `facts` holds device, seed, seconds, loss, n, base_score and adapter_score.
    """
    task, how = TASKS[recipe["task"]], "transformers + peft, greedy, float32"
    (out / "README.md").write_text(card_text(task, recipe, facts))
    add_score(out / "README.md", "base", how, facts["n"], facts["base_score"])
    add_score(out / "README.md", "this adapter", how, facts["n"], facts["adapter_score"])


def card_text(task: Task, recipe: dict[str, Any], facts: dict[str, Any]) -> str:
    """The whole card, its table of scores still empty."""
    name, words = f"{task.name}-{recipe['version']}", WORDS[task.name]
    example = task.examples("held-out", 1)[0]
    return f"""---
license: apache-2.0
base_model: {BASE_NAME}
library_name: peft
pipeline_tag: text-generation
language: en
tags: [lora, synthetic-data]
---
# {name}

{words.about.strip()}

A LoRA adapter for SmolLM2-135M-Instruct,
made as a demo of serving many adapters on one base.

A held-out example, the user message and then the answer wanted:

```text
{example.prompt}
```
```text
{example.answer}
```

Send the prompt as one user message, without a system message (the chat template then inserts its
own, as in training), at temperature 0.

## Held-out score

Metric: {task.metric} on held-out examples (seed 0), drawn by `adapters/tasks.py`.

| Model | Measured with | Examples | Score |
| --- | --- | --- | --- |

## Data

Synthetic, in full: made by `adapters/{task.name}_data.py` of this repository, no outside text.
{words.data.strip()}

Trained on {recipe["examples"]} examples (seed {facts["seed"]}); loss on the answers' tokens only.

## Training

| | |
| --- | --- |
| Command | `python adapters/train.py {name} --base DIR` |
| LoRA | rank {recipe["rank"]}, alpha {recipe["alpha"]}, on {", ".join(recipe["targets"])} |
| Optimiser | AdamW, learning rate {recipe["learning_rate"]:g} |
| Schedule | {recipe["warmup"]} steps of warm-up, then a cosine to 0 |
| Steps | {recipe["steps"]} of {recipe["batch"]} examples |
| Precision | float32 weights, bfloat16 autocast; saved in bfloat16 |
| Device | {facts["device"]} |
| Time | {facts["seconds"] / 60:.1f} minutes for the steps |
| Loss at the end | {facts["loss"]:.4f} |

## Limits

{words.limits.strip()}

## Licence

Apache-2.0. The base, SmolLM2-135M-Instruct by Hugging Face, is Apache-2.0 too.
"""


def add_score(card: Path, who: str, how: str, n: int, score: float) -> None:
    """Put a row into the card's table of scores; it replaces one of the same `who` and `how`."""
    lines = card.read_text().splitlines()
    start = f"| {who} | {how} |"
    lines = [line for line in lines if not line.startswith(start)]
    end = lines.index("| --- | --- | --- | --- |") + 1
    while lines[end].startswith("|"):
        end += 1
    lines.insert(end, f"{start} {n} | {score:.3f} |")
    card.write_text("\n".join(lines) + "\n")
