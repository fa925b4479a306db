"""The storm: LIVE updates round robin under traffic, every answer compared with fresh servers'.

`check` decides what is a violation.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stacked.bench.asking import PROMPTS, Refused, apart, references
from stacked.bench.check import BASE, Tokens, Version, Violation, judge
from stacked.bench.clients import Mix, Traffic
from stacked.bench.groups import Storm, config_tree, group_members, make_storm, pool_members
from stacked.bench.report import Result, Telling
from stacked.bench.server import counted, serving
from stacked.bench.subject import Subject, config_of
from stacked.bench.updates import Update, Updater, phase_table
from stacked.client import Client, ClientError
from stacked.config import Config
from stacked.errors import ConfigInvalid, UpdateFailed

# If the clients are too slow for the number of responses, up to so many times more updates are
# made.
_MOST_TIMES = 5
_REPORTED_EACH = 20


@dataclass(frozen=True, slots=True)
class Settings:
    updates: int
    clients: int
    groups: int
    responses: int
    max_tokens: int


@dataclass(slots=True)
class Seen:
    """What was observed of the storm itself. `failures` are of updates, not of answers."""

    traffic: Traffic
    versions: list[Version]
    updates: list[Update] = field(default_factory=list)
    failures: list[Violation] = field(default_factory=list)
    seconds: float = 0.0
    prefix_hits: int = 0

    def figures(self) -> dict[str, Any]:
        answers = self.traffic.answers
        return {
            "updates": len(self.updates),
            "answers": len(answers),
            "whole_answers": self.traffic.whole,
            "requests_by_kind": dict(sorted(self.traffic.counts.items())),
            "refused_by_code": dict(Counter(each.code for each in self.traffic.refusals)),
            "answers_under_way_at_a_switch": self._met(),
            "generations_that_answered": len({answer.generation for answer in answers}),
            "prompt_tokens_from_the_prefix_cache": self.prefix_hits,
            "seconds": round(self.seconds, 2),
            "answers_per_second": round(len(answers) / self.seconds, 1),
            "phases_seconds": phase_table(self.updates),
        }

    def _met(self) -> int:
        """How many answers were under way when a switch was acknowledged."""
        return sum(
            any(answer.sent <= update.switched <= answer.ended for update in self.updates)
            for answer in self.traffic.answers
        )


def run_storm(
    served: Config | Subject, settings: Settings, directory: Path, tell: Telling
) -> Result:
    """Run it under `directory`; its figures. Raises StackedError if it cannot run."""
    config = config_of(served) if isinstance(served, Subject) else served
    storm = make_storm(config, settings.groups)
    known: dict[tuple[int, str, int], Tokens] = {}
    for number in range(len(storm.groups)):
        tell.begin(f"Reference {number + 1} of {len(storm.groups)}: a fresh server of one group")
        known |= _reference(config, storm, number, settings.max_tokens, directory)
    alone, pairs = apart(known)
    tell.note(f"{alone} of {pairs} reference answers are given by one model alone")
    if alone < pairs / 2:
        raise ConfigInvalid(
            "most adapters give the same answers; such a storm could not show a mix"
        )
    tell.begin(f"The storm: {settings.updates} updates under {settings.clients} clients")
    seen = _storm(config, storm, settings, directory, tell)
    violations = judge(seen.traffic.answers, seen.traffic.refusals, seen.versions, known)
    violations += seen.failures
    figures = {
        "base": Path(config.base.model).name,
        "engine": dict(config.engine),
        "adapters": len(storm.pool),
        "groups": [dict(group) for group in storm.groups],
        "reference": {"answers": len(known), "given_by_one_model_alone": [alone, pairs]},
        "clients": settings.clients,
        "prompts": len(PROMPTS),
        "tokens_per_answer": settings.max_tokens,
        **seen.figures(),
        "violations": dict(Counter(each.kind for each in violations)),
        "first_violations": [f"{each.kind}: {each.text}" for each in violations[:20]],
    }
    rows = storm_rows(figures)
    return Result(
        "swap", figures, ("figure", "value"), rows, violations=figures["first_violations"]
    )


def _reference(
    config: Config, storm: Storm, number: int, max_tokens: int, directory: Path
) -> Mapping[tuple[int, str, int], Tokens]:
    members = group_members(storm, storm.groups[number])
    place = directory / f"reference-{number}"
    with serving(config_tree(config, members), place, place / "data") as url:
        with Client(url) as client:
            keys = {each["inferenceKey"]: each["digest"] for each in client.status()["models"]}
        try:
            return asyncio.run(references(url, number, keys, config.base.key, max_tokens))
        except Refused as error:
            raise ConfigInvalid(f"a reference was refused: {error.code}: {error}") from error


def _storm(
    config: Config, storm: Storm, settings: Settings, directory: Path, tell: Telling
) -> Seen:
    tree = config_tree(config, pool_members(storm))
    place = directory / "storm"
    with serving(tree, place, place / "data") as url, Client(url) as client:
        updater = Updater(client)
        groups = [
            updater.create(f"storm {number}", group_members(storm, group))
            for number, group in enumerate(storm.groups)
        ]
        meanings = [
            {key: updater.digest(storm.pool[at]) for key, at in group.items()}
            | {config.base.key: BASE}
            for group in storm.groups
        ]
        # The whole pool was served until here, so that the engine was planned for all of it.
        first = updater.go(groups[0])
        mix = Mix(config.base.key, storm.lasting, storm.passing, settings.max_tokens)
        traffic = Traffic(url, mix, settings.clients)
        seen = Seen(traffic, [Version(first.generation, 0, meanings[0], first.requested)])
        began = time.monotonic()
        with traffic:
            while _goes_on(settings, seen):
                at = (len(seen.updates) + 1) % len(groups)
                _one(updater, groups[at], at, meanings[at], seen)
                tell.fraction(len(seen.updates) / settings.updates)
                if len(seen.updates) % _REPORTED_EACH == 0:
                    tell.note(f"{len(seen.updates)} updates, {traffic.whole} whole answers")
        seen.seconds = time.monotonic() - began
        _look_back(seen, settings, url, client)
    return seen


def _look_back(seen: Seen, settings: Settings, url: str, client: Client) -> None:
    """Violations that only show at the end."""
    if seen.failures:
        return
    if client.status()["generation"] != seen.versions[-1].generation:
        seen.failures.append(Violation("update", "the server counts other generations"))
    if seen.traffic.whole < settings.responses:
        message = f"{seen.traffic.whole} whole answers, and {settings.responses} were requested"
        seen.failures.append(Violation("error", message))
    seen.prefix_hits = int(counted(url, "vllm:prefix_cache_hits_total"))


def _goes_on(settings: Settings, seen: Seen) -> bool:
    done = len(seen.updates)
    if seen.failures or seen.traffic.failed or done >= _MOST_TIMES * settings.updates:
        return False
    return done < settings.updates or seen.traffic.whole < settings.responses


def _one(updater: Updater, group_id: str, group: int, keys: Mapping[str, str], seen: Seen) -> None:
    """One update under traffic; the version before it ends with the acknowledged switch."""
    requested = time.monotonic()
    try:
        done = updater.go(group_id)
    except (UpdateFailed, ClientError) as error:
        seen.failures.append(Violation("update", str(error)))
        # It may have switched anyway: answers from here on may be of either.
        seen.versions.append(Version(updater.generation + 1, group, keys, requested))
        return
    seen.versions[-1] = replace(seen.versions[-1], replaced=done.switched)
    seen.versions.append(Version(done.generation, group, keys, done.requested))
    seen.updates.append(done)


_HIDDEN = ("groups", "first_violations", "engine")


def storm_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    """The figures as text, one line for each, also for a figure with parts."""
    rows = []
    for name, value in figures.items():
        if name in _HIDDEN:
            continue
        if name == "phases_seconds":
            rows += [
                [f"seconds {phase}", f"median {each['median']:.3f}, most {each['most']:.3f}"]
                for phase, each in value.items()
            ]
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{part} {count}" for part, count in value.items()) or "none"
        rows.append([name.replace("_", " "), str(value)])
    return rows
