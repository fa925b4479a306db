"""Trains the demo adapters: a named recipe in, a PEFT directory with a model card out.

Owns the recipes and the training loop; must not know the serving engine or how a server scores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from card import BASE_NAME, write_card
from greedy import answers
from peft import LoraConfig, get_peft_model
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tasks import TASKS, Example, Task
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recipe:
    """What one adapter is trained on and how: different examples, and updates of the weights."""

    task: str
    version: str
    examples: int
    steps: int
    batch: int = 8
    learning_rate: float = 2e-3
    warmup: int = 20
    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


RECIPES: dict[str, Recipe] = {
    "sql-v1": Recipe("sql", "v1", examples=64, steps=30, warmup=5),
    "sql-v2": Recipe("sql", "v2", examples=1800, steps=225),
    "triage-v1": Recipe("triage", "v1", examples=1600, steps=200),
    "pirate-v1": Recipe("pirate", "v1", examples=640, steps=100, warmup=10),
}


@dataclass(frozen=True)
class Encoded:
    """Token ids of one chat with its answer; the first `prompt` of them are not trained on."""

    ids: list[int]
    prompt: int


def encode(tokenizer: Any, example: Example) -> Encoded:
    """The chat as the template writes it, then the answer and the end-of-turn token."""
    prompt = tokenizer.apply_chat_template(
        example.messages, add_generation_prompt=True, tokenize=False
    )
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = tokenizer(example.answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
    return Encoded(head + tail, len(head))


def batches(data: list[Encoded], recipe: Recipe, rng: random.Random) -> Iterator[list[Encoded]]:
    """Endless batches: shuffled every epoch, and of like length so that little is padded."""
    while True:
        order = rng.sample(data, len(data))
        window = recipe.batch * 8
        epoch = []
        for start in range(0, len(order), window):
            part = sorted(order[start : start + window], key=lambda item: len(item.ids))
            epoch += [part[i : i + recipe.batch] for i in range(0, len(part), recipe.batch)]
        rng.shuffle(epoch)
        yield from epoch


def answer_loss(model: Any, batch: list[Encoded], pad: int) -> torch.Tensor:
    """Mean cross entropy over the answers' tokens; logits are made for these tokens only."""
    width = max(len(item.ids) for item in batch)
    ids = torch.tensor([item.ids + [pad] * (width - len(item.ids)) for item in batch])
    place = torch.arange(width)
    ends = torch.tensor([[item.prompt, len(item.ids)] for item in batch])
    real = place < ends[:, 1:]
    # Position p predicts token p + 1, so the answer's predictors start one before the answer.
    predicts = (place >= ends[:, :1] - 1) & (place < ends[:, 1:] - 1)
    device = model.device
    decoder, head = model.base_model.model.model, model.base_model.model.lm_head
    hidden = decoder(input_ids=ids.to(device), attention_mask=real.long().to(device))[0]
    logits = head(hidden[predicts.to(device)])
    return torch.nn.functional.cross_entropy(
        logits.float(), ids[:, 1:][predicts[:, :-1]].to(device)
    )


def rate(step: int, recipe: Recipe) -> float:
    """Share of the learning rate at `step`: linear warm-up, then a cosine down to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return 0.5 + 0.5 * math.cos(
        math.pi * (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    )


def progress() -> Progress:
    """A bar with the number of steps, the time left and the loss."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    loss = TextColumn("loss {task.fields[loss]:.4f}")
    return Progress(TextColumn("{task.description}"), *columns, loss)


def mean(values: list[float]) -> float:
    """The mean of a list that is not empty."""
    return sum(values) / len(values)


def train(model: Any, tokenizer: Any, data: list[Encoded], recipe: Recipe, seed: int) -> float:
    """Run the recipe's steps in place; returns the mean loss of the last tenth of them."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, recipe))
    source = batches(data, recipe, random.Random(seed))
    losses: list[float] = []
    tenth = max(1, recipe.steps // 10)
    model.train()
    with progress() as bar:
        name = f"{recipe.task}-{recipe.version}"
        shown = bar.add_task(name, total=recipe.steps, loss=0.0)
        for step in range(1, recipe.steps + 1):
            with torch.autocast(model.device.type, dtype=torch.bfloat16):
                loss = answer_loss(model, next(source), tokenizer.pad_token_id)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            bar.update(shown, advance=1, loss=mean(losses[-20:]))
            if step % tenth == 0:  # so that a log file, which has no bar, tells the way too
                bar.console.print(f"{name}: step {step}, loss {mean(losses[-tenth:]):.4f}")
    return mean(losses[-tenth:])


def with_lora(model: Any, recipe: Recipe) -> Any:
    """The base with fresh LoRA matrices, the only weights that learn."""
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.targets),
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, config)
    # peft writes the path that the base was read from; the name is what travels.
    peft_model.peft_config["default"].base_model_name_or_path = BASE_NAME
    return peft_model


def save(model: Any, out: Path) -> None:
    """Write the adapter in bfloat16, and leave the model with exactly the values written."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
    model.save_pretrained(out, save_embedding_layers=False)
    config = out / "adapter_config.json"
    fields = json.loads(config.read_text())
    fields["target_modules"].sort()  # peft keeps a set: its order would differ from run to run
    config.write_text(json.dumps(fields, indent=2) + "\n")
    (out / "adapter_model.safetensors").chmod(0o644)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def held_out_score(model: Any, tokenizer: Any, task: Task, n: int) -> float:
    """Mean score of greedy answers over `n` held-out examples."""
    examples = task.examples("held-out", n)
    made = answers(model, tokenizer, [e.messages for e in examples], task.max_tokens)
    return sum(task.score(e, a) for e, a in zip(examples, made, strict=True)) / n


def hardware(device: str) -> str:
    """What ran the training, in words for the card."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return f"{device}, {os.cpu_count()} cores"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--base", required=True, help="directory or Hub id of the base model")
    parser.add_argument("--out", type=Path, help="default: TASK/VERSION beside this script")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, help="examples scored at the end")
    parser.add_argument("--steps", type=int, help="override the recipe's number of steps")
    return parser.parse_args()


def main() -> None:
    """Train one recipe, save it, score it and its base, and write the model card."""
    args = arguments()
    recipe = RECIPES[args.recipe]
    if args.steps:
        recipe = Recipe(**{**asdict(recipe), "steps": args.steps})
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    task = TASKS[recipe.task]
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    base = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32).to(device)
    model = with_lora(base, recipe)
    data = [encode(tokenizer, e) for e in task.examples("train", recipe.examples, args.seed)]
    started = time.perf_counter()
    loss = train(model, tokenizer, data, recipe, args.seed)
    seconds = time.perf_counter() - started
    out = args.out or HERE / recipe.task / recipe.version
    save(model, out)
    facts: dict[str, Any] = {
        "device": hardware(device),
        "seed": args.seed,
        "loss": loss,
        "seconds": seconds,
    }
    facts["n"] = args.held_out or task.held_out
    facts["adapter_score"] = held_out_score(model, tokenizer, task, facts["n"])
    with model.disable_adapter():
        facts["base_score"] = held_out_score(model, tokenizer, task, facts["n"])
    write_card(out, asdict(recipe), facts)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
