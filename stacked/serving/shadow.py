"""Shadow traffic: some requests are answered once more, by another model, for a comparison.

A copy begins when its request has ended: only then is there an answer to compare with, and nothing
of it can delay the client. It gives way to everything. Nobody gets its answer, and it counts
nowhere but here. All of this is gone with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, replace
from functools import partial

from stacked.config import Design, ShadowConfig, ShadowLimits
from stacked.engine import turns
from stacked.engine.loaded import Loaded
from stacked.engine.made import Made
from stacked.engine.scoring import mean_logprob
from stacked.errors import ParameterInvalid, RoutingError, StackedError, UpdateInProgress
from stacked.experiments.comparison import Answered, Scores
from stacked.experiments.sampling import Portion
from stacked.fairness import Share
from stacked.groups.routing import Route
from stacked.serving import Admission, Receive, Report, Scope, Send
from stacked.serving.copies import COPIED, copy_of, is_greedy
from stacked.serving.door import Call
from stacked.serving.findings import Findings, Line
from stacked.serving.inside import Answer, ask
from stacked.serving.targets import Target
from stacked.serving.vllm import VllmServing

logger = logging.getLogger("stacked.serving")

# Larger ones are not copied: of each, some wait in memory.
_MOST_BYTES = 256 * 1024
_MOST_TOKENS = 16 * 1024
_WHOLE = ("stop", "length")
# Between two looks whether a copy's prompt would be read in front of a client's. Clients that send
# one request after the other need less for their next one.
_PAUSE_SECONDS = 0.02
# How long a copy waits for others to run with: many at once cost little more than one, and
# requests meet them less often.
_BURST_SECONDS = 10.0
# Of the requests that the engine runs at once, one in so many may be a copy.
_SEATS = 8
# Prompts of copies that are read together: with more of them the engine would have requests wait.
_BURST_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Copy:
    """A request that was answered, to be answered once more."""

    serving: VllmServing
    pair: ShadowConfig
    route: Route[Loaded]
    """What has answered it."""
    call: Callable[[], Call]
    made: Made
    context: Context


@dataclass(slots=True)
class _Run:
    copy: Copy
    line: Line
    why: str = ""
    """The reason for which it was ended."""


class _Dropped(Exception):
    """A copy is not made; the reason's name."""


class _Failed(Exception):
    """A copy was answered with an error; its status."""


class Shadow:
    """The copies of one process: those that run, those that wait, and what they have shown."""

    def __init__(
        self,
        limits: ShadowLimits,
        ask: Callable[..., Awaitable[Answer]] = ask,
        score: Callable[..., Awaitable[float | None]] = mean_logprob,
    ) -> None:
        self.findings = Findings(limits.samples)
        self._limits = limits
        self._ask, self._score = ask, score
        self._design = Design()
        self._portions: dict[ShadowConfig, Portion] = {}
        self._running: dict[asyncio.Task[None], _Run] = {}
        self._waiting: deque[_Run] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._scoring = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._closed = False

    # -- which requests ---------------------------------------------------------------------

    def watch(
        self, serving: VllmServing, admission: Admission, target: Target, scope: Scope, body: bytes
    ) -> Admission:
        """The admission of a request, which is copied if it is the turn of one of its key's."""
        if target.path is not None and target.path not in COPIED:
            return admission
        pairs = self._chosen(serving.live.routing.design, admission.route.label)
        if not pairs:
            return admission
        headers = [pair for pair in scope["headers"] if pair[0].lower() == b"route"]
        call = partial(Call.read, target, {"headers": headers}, body)
        made = Made(_MOST_TOKENS if len(body) <= _MOST_BYTES else 0)

        async def answer(receive: Receive, send: Send, report: Report) -> None:
            try:
                await admission.answer(receive, send, replace(report, output=made.add))
            finally:
                for pair in pairs:
                    self._offer(Copy(serving, pair, admission.route, call, made, copy_context()))

        return admission._replace(answer=answer)

    def _chosen(self, design: Design, label: str) -> list[ShadowConfig]:
        if design is not self._design:
            self._design = design
            self._portions = {pair: Portion(pair.percent) for pair in design.shadow}
        return [pair for pair, due in self._portions.items() if pair.key == label and due()]

    # -- which copies -----------------------------------------------------------------------

    def _offer(self, copy: Copy) -> None:
        """A request has ended: copy it now, soon, or not at all."""
        pair, to = copy.pair, ""
        with contextlib.suppress(RoutingError):
            to = _content(copy.serving.live.routing.resolve(pair.to))
        run = _Run(copy, Line(pair.key, pair.to, _content(copy.route), to))
        if why := self._refusal(copy):
            self._drop(run, why)
        elif len(self._waiting) >= self._limits.waiting:
            self._drop(run, "queue")
        else:
            self._waiting.append(run)
            self._plan()

    def _refusal(self, copy: Copy) -> str:
        """Why a copy is not begun now; empty if it may be."""
        if copy.made.finish not in _WHOLE:
            return "unfinished" if copy.made.most else "unsuitable"
        serving = copy.serving
        if self._closed or serving.live.routing.generation != copy.route.generation:
            return "change"
        queue = serving.app.state.turns
        if queue is None:
            return "load" if serving.engine.full else ""
        queue.crowded = self.crowded
        return "load" if queue.waiting() else ""

    def _plan(self) -> None:
        """Have those that wait begin once they are many, or have waited long enough."""
        if self._running or not self._waiting:
            return
        if len(self._waiting) >= self._most():
            self._begin()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_BURST_SECONDS, self._begin)

    def _begin(self) -> None:
        """Begin a burst."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tokens = 0
        while self._waiting and len(self._running) < self._most():
            tokens += len(self._waiting[0].copy.made.prompt)
            if self._running and tokens > _BURST_TOKENS:
                return
            run = self._waiting.popleft()
            if why := self._refusal(run.copy):
                self._drop(run, why)
                continue
            answer = self._answer(run)
            task = asyncio.get_running_loop().create_task(answer, context=run.copy.context)
            self._running[task] = run
            task.add_done_callback(self._ended)

    def _most(self) -> int:
        """How many run at once."""
        seats = self._waiting[0].copy.serving.engine.seats
        return min(self._limits.running, max(1, seats // _SEATS))

    def crowded(self) -> None:
        """A request has to wait for its turn: all copies make room for it."""
        while self._waiting:
            self._drop(self._waiting.popleft(), "load")
        for task in self._running:
            self._end(task, "load")

    def _end(self, task: asyncio.Task[None], why: str, *_: Exception) -> None:
        run = self._running.get(task)
        if run is not None and task.cancel():
            run.why = run.why or why

    def _ended(self, task: asyncio.Task[None]) -> None:
        run = self._running.pop(task)
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            self._drop(run, run.why or "change")
        elif isinstance(error, _Dropped):
            self._drop(run, str(error))
        elif error is not None:
            self._fail(run, error)
        self._plan()

    def _drop(self, run: _Run, why: str) -> None:
        self.findings.dropped(run.line, why)

    def _fail(self, run: _Run, error: BaseException) -> None:
        code = type(error).__name__
        if isinstance(error, StackedError):
            code = error.code
        elif isinstance(error, _Failed):
            code = str(error)
        else:
            logger.error("a copy of a request to %s failed", run.line.key, exc_info=error)
        self.findings.failed(run.line, code)

    async def close(self) -> None:
        """End all copies. There are no more then."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._waiting:
            self._drop(self._waiting.popleft(), "change")
        tasks = [*self._running]
        for task in tasks:
            self._end(task, "change")
        if tasks:
            await asyncio.wait(tasks)

    # -- one copy ---------------------------------------------------------------------------

    async def _answer(self, run: _Run) -> None:
        copy, live = run.copy, run.copy.serving.live
        try:
            live.check_free()
            route = live.routing.resolve(copy.pair.to)
        except (UpdateInProgress, RoutingError) as error:
            raise _Dropped("change") from error
        await self._compare(run, route)

    async def _compare(self, run: _Run, route: Route[Loaded]) -> None:
        copy = run.copy
        call = copy.call()
        path = copy.serving.door.path_of(call)
        body = copy_of(path, call.tree, copy.serving.door.known.get(path, frozenset()))
        if body is None:
            raise _Dropped("unsuitable")
        share, made = Share(key=route.label, batch=True, background=True), Made(_MOST_TOKENS)
        turns.share.set(share)
        # Not both at once: what is leased when an engine dies is what may be to blame.
        with self._lent(run, route):
            await self._quiet(copy.serving)
            answer = await self._ask(
                copy.serving,
                route,
                path,
                body,
                share=share,
                seconds=self._limits.seconds,
                output=made.add,
            )
            if answer.status != 200:
                raise _Failed(str(answer.status))
            if made.finish not in _WHOLE:
                raise _Dropped("unsuitable")
            by_shadow = await self._logprob(copy, route, made.prompt)
        with self._lent(run, copy.route):
            by_served = await self._logprob(copy, copy.route, copy.made.prompt)
        scores = None
        if by_served is not None and by_shadow is not None:
            scores = Scores(by_served, by_shadow)
        self.findings.compared(
            run.line,
            body,
            _answered(copy.made),
            _answered(made),
            scores,
            greedy=is_greedy(body),
        )

    @contextlib.contextmanager
    def _lent(self, run: _Run, route: Route[Loaded]) -> Iterator[None]:
        """Hold a served model for as long as nobody waits for it to be free. Raises _Dropped."""
        task, live = asyncio.current_task(), run.copy.serving.live
        assert task is not None
        served = route.digest is None or live.routing.handles.get(route.digest) is route.handle
        end = partial(self._end, task, "change")
        lease = live.leases.lend(route.handle, end) if served else None
        if lease is None:
            raise _Dropped("change")
        with lease:
            yield

    async def _quiet(self, serving: VllmServing) -> None:
        """Return once nobody waits for a first token. Raises _Dropped if that takes too long."""
        for _ in range(max(1, int(self._limits.seconds / _PAUSE_SECONDS))):
            await asyncio.sleep(_PAUSE_SECONDS)
            if not serving.engine.reading:
                return
        raise _Dropped("load")

    async def _logprob(
        self, copy: Copy, route: Route[Loaded], prompt: Sequence[int]
    ) -> float | None:
        """How probable a model finds the served answer, after its own form of the prompt."""
        id = f"shadow-{next(self._numbers)}"
        async with self._scoring:  # vLLM computes the logits of a whole prompt at once
            await self._quiet(copy.serving)
            with contextlib.suppress(ParameterInvalid):  # that form has no room for it
                return await self._score(
                    copy.serving.engine, route.handle, prompt, copy.made.tokens, request_id=id
                )
        return None


def _content(route: Route[Loaded]) -> str:
    return route.digest or "base"


def _answered(made: Made) -> Answered:
    return Answered(made.text, len(made.tokens), made.seconds)
