"""lm-eval's `local-completions`: log-likelihoods of continuations, and generation, by key."""

from __future__ import annotations

import json
import os
from pathlib import Path

from asking import API_KEY, ASKED, BASE_URL, tell
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.openai_completions import LocalCompletionsAPI

# Where lm-eval looks for it.
os.environ["OPENAI_API_KEY"] = API_KEY


def model(key: str) -> LocalCompletionsAPI:
    return LocalCompletionsAPI(
        model=key,
        base_url=f"{BASE_URL}/completions",
        tokenizer=ASKED["tokenizer"],
        tokenized_requests=True,
        num_concurrent=1,
        max_length=1024,
        batch_size=4,
    )


def instances(kind: str, arguments: list[tuple[object, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, at) for at, each in enumerate(arguments)]


def accuracy(key: str) -> float:
    """Of a task of two questions, which the whole of lm-eval runs."""
    questions = [
        {"country": "France", "capitals": ["Berlin", "Paris"], "right": 1},
        {"country": "Italy", "capitals": ["Rome", "Madrid"], "right": 0},
    ]
    path = Path("capitals.jsonl").absolute()
    path.write_text("\n".join(json.dumps(each) for each in questions), encoding="utf-8")
    task = {
        "task": "capitals",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "The capital of {{country}} is",
        "doc_to_choice": "{{capitals}}",
        "doc_to_target": "{{right}}",
    }
    done = simple_evaluate(model(key), tasks=[ConfigurableTask(config=task)], bootstrap_iters=0)
    return done["results"]["capitals"]["acc,none"]


def log_likelihoods(key: str) -> list[tuple[float, bool]]:
    pairs = [tuple(pair) for pair in ASKED["pairs"]]
    return model(key).loglikelihood(instances("loglikelihood", pairs))


until = {"until": ["\n"], "max_gen_toks": 5, "temperature": 0}
tell(
    base=log_likelihoods("base"),
    sql=log_likelihoods("sql"),
    accuracy=accuracy("base"),
    generated=model("base").generate_until(instances("generate_until", [(ASKED["france"], until)])),
)
