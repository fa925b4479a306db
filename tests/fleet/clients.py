"""Clients of a fleet, and what they hold against it: wrong answers, and answers of older groups.

Every one of them is in one thread, so that it is known which answer came before which request.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from tests.fleet.kinds import PROMPTS, Doubles, Kind, fingerprint

# What a fault may cost a request: no answer, or one that says to try again.
_LOST = "no answer"
_REFUSED = 503


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got; times are of the monotonic clock."""

    key: str
    prompt: str
    said: str
    digest: str
    generation: int
    newest: int
    """The newest generation that any client, or in the mode `session` this one, had got when the
    request was sent."""
    sent: float
    arrived: float


@dataclass(slots=True)
class Heard:
    """Everything that clients have got."""

    answers: list[Answer] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    strange: list[str] = field(default_factory=list)
    """What no fault explains."""
    newest: int = 0
    behind: int = 0
    """Answers of an older generation than any client had got when the request was sent: in the mode
    `session` they are allowed."""

    def judge(
        self,
        groups: Mapping[int, Mapping[str, str]],
        digests: Mapping[str, str],
        expected: Callable[[str, str], str] = fingerprint,
    ) -> list[str]:
        """Every broken promise. `groups`: what was committed, as generation -> key -> secret;
        `digests`: of the content that has a secret; `expected`: what it answers to a prompt.
        """
        return [f"strange: {each}" for each in self.strange] + [
            said for answer in self.answers if (said := _wrong(answer, groups, digests, expected))
        ]

    def longest_gap(self, since: float, until: float) -> float:
        """The longest time without an answer."""
        times = sorted(a.arrived for a in self.answers if since <= a.arrived <= until)
        return max(after - before for before, after in itertools.pairwise([since, *times, until]))


def _wrong(
    answer: Answer,
    groups: Mapping[int, Mapping[str, str]],
    digests: Mapping[str, str],
    expected: Callable[[str, str], str],
) -> str:
    name = f"{answer.key} of generation {answer.generation}"
    if answer.generation < answer.newest:
        return f"backwards: {name} after {answer.newest}"
    if answer.generation not in groups:
        return f"never committed: {name}"
    secret = groups[answer.generation][answer.key]
    if answer.digest != digests[secret]:
        return f"wrong: {name} is said to be {answer.digest}, not {digests[secret]}"
    if answer.said != expected(secret, answer.prompt):
        return f"wrong: {name} is not what its content answers"
    return ""


class Clients:
    """They run as a task, from `run` until it is cancelled."""

    def __init__(
        self,
        heard: Heard,
        keys: Sequence[str],
        kind: Kind | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """`alone`: each holds only against a fleet what it has got itself, and sends that back."""
        self._heard, self._keys, self._alone = heard, keys, alone
        self._kind: Kind = kind or Doubles()

    async def run(self, url: str, clients: int, pause: float = 0.0) -> None:
        """So many clients, each with one request after the other, each over a new connection."""
        async with self._session(20.0) as session, asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(self._client(session, url, random.Random(number), pause))

    async def probe(self, url: str, every: float, most: int) -> None:
        """Requests at fixed times of a replica itself, as a balancer sends them that knows nothing
        of its state; also while those before are not answered.
        """
        chance, places = random.Random(url), asyncio.Semaphore(most)
        async with self._session(60.0) as session, asyncio.TaskGroup() as tasks:
            while True:
                await places.acquire()
                request = tasks.create_task(self._request(session, url, chance, 0))
                request.add_done_callback(lambda _: places.release())
                await asyncio.sleep(every)

    @staticmethod
    def _session(seconds: float) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=seconds)
        return aiohttp.ClientSession(connector=connector, timeout=timeout)

    async def _client(
        self, session: aiohttp.ClientSession, url: str, chance: random.Random, pause: float
    ) -> None:
        own = 0
        while True:
            own = max(own, await self._request(session, url, chance, own))
            await asyncio.sleep(pause)

    async def _request(
        self, session: aiohttp.ClientSession, url: str, chance: random.Random, own: int
    ) -> int:
        """Its generation; 0 without an answer."""
        key, prompt = chance.choice(self._keys), chance.choice(PROMPTS)
        newest, sent = self._heard.newest, time.monotonic()
        headers = {"model-key": key}
        if self._alone and own:
            headers["model-generation"] = str(own)
        try:
            async with session.post(
                f"{url}/predict", json=self._kind.body(prompt), headers=headers
            ) as response:
                body = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            self._heard.refused[_LOST] += 1
            await asyncio.sleep(0.05)  # what is refused costs nothing: do not only ask for that
            return 0
        if response.status != 200:
            code = f"{response.status} {(body or {}).get('code', 'of the balancer')}"
            self._heard.refused[code] += 1
            if response.status != _REFUSED:
                self._heard.strange.append(f"{code}: {str(body)[:200]}")
            await asyncio.sleep(0.05)
            return 0
        generation = int(response.headers["model-generation"])
        self._heard.behind += generation < newest
        self._heard.newest = max(self._heard.newest, generation)
        digest, arrived = response.headers["model-digest"], time.monotonic()
        self._heard.answers.append(
            Answer(
                key,
                prompt,
                self._kind.said(body),
                digest,
                generation,
                own if self._alone else newest,
                sent,
                arrived,
            )
        )
        return generation
