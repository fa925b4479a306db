"""Follows the engine that serves: a death or silence is noticed, explained, and made good.

A restart needs no records, so that a full disk does not keep a group from being served.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping

from stacked import metrics
from stacked.config import SupervisionConfig
from stacked.core import Digest, Member, short
from stacked.deployment.activation import Active, Slot
from stacked.deployment.deployments import Deployments
from stacked.deployment.ledger import Ledger
from stacked.engine.processes import Ended
from stacked.errors import StackedError, UpdateInProgress
from stacked.steps import Progress
from stacked.supervision.policy import Cause, Death, Decision, decide
from stacked.supervision.pulse import Pulse

logger = logging.getLogger("stacked.supervision")

TICK_SECONDS = 1.0

# From the end of a silent engine to vLLM's notice of it, which takes a second.
_NOTICE_SECONDS, _NOTICES = 0.1, 300


class Supervisor:
    """Of one server. `begin` once there is a loop; `await close()` ends it and what it starts."""

    def __init__(
        self,
        slot: Slot,
        deployments: Deployments,
        ledger: Ledger,
        rules: SupervisionConfig,
        tell: Progress,
        give_up: Callable[[str], None],
    ) -> None:
        """`give_up` is called with the reason when no further start is tried."""
        self._slot = slot
        self._deployments = deployments
        self._ledger = ledger
        self._rules = rules
        self._tell = tell
        self._give_up = give_up
        self._deaths: deque[Death] = deque(maxlen=rules.deaths + rules.quarantine_after)
        self._start_seconds = 30.0
        """What the last restart took; a guess before there was one."""
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Start nothing any more. Closing twice is allowed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._watch()
            except Exception as error:  # a fault of ours must not leave a dead engine as it is
                logger.exception("the supervision failed")
                if self._slot.lost is not None:
                    fault = f"and an internal error: {type(error).__name__}"
                    self._end_of_tries(self._slot.lost, fault)
                await asyncio.sleep(TICK_SECONDS)

    async def _watch(self) -> None:
        """Return when an engine has died and been made good, or another one has its place."""
        active = self._slot.active
        if active is None:
            await asyncio.sleep(TICK_SECONDS)
            return
        serving, began = active.serving, time.monotonic()
        # Written once more where the start has: what was given up before this began is not lost.
        quarantined: Mapping[Member, str] = {}
        pulse = Pulse(serving.step, self._rules.hang.total_seconds())
        try:
            while self._is_served(active):
                await asyncio.sleep(TICK_SECONDS)
                if serving.live.quarantined != quarantined and self._deployments.running is None:
                    quarantined = serving.live.quarantined
                    self._note_served(active)
                hangs = pulse.hangs(working=bool(serving.live.leases.things()))
                if serving.dead or hangs:
                    await self._died(active, hangs, time.monotonic() - began)
                    return
        finally:
            pulse.close()

    def _is_served(self, active: Active) -> bool:
        """A LIVE update changes the name alone."""
        now = self._slot.active
        return now is not None and now.serving is active.serving

    def _is_lost(self, lost: Active) -> bool:
        """Whether it is still to come back: a person may have decided otherwise."""
        now = self._slot.lost
        return now is not None and now.serving is lost.serving

    async def _died(self, active: Active, hangs: bool, served: float) -> None:
        if not self._is_served(active):  # it was replaced in this second, and closed
            return
        lost = self._slot.lose("its engine has died")
        if hangs:
            await self._end(lost)
        ended = await lost.serving.bury()
        await self._deployments.wait()
        if not self._is_lost(lost):
            return
        cause = _cause(ended, hangs)
        metrics.engine_died(cause.value)
        silence = f"{ended.who} made no step for {self._rules.hang} and was ended"
        what = silence if hangs else str(ended)
        death = Death(served, cause, lost.serving.in_flight or frozenset())
        await self._bring_back(lost, death, what)

    async def _end(self, lost: Active) -> None:
        lost.serving.kill()
        for _ in range(_NOTICES):
            if lost.serving.dead:
                return
            await asyncio.sleep(_NOTICE_SECONDS)

    async def _bring_back(self, lost: Active, death: Death, what: str) -> None:
        """Start engines until one comes up, or no more are tried."""
        quarantined: dict[Digest, str] = {}
        while self._is_lost(lost):
            self._deaths.append(death)
            decision = decide([*self._deaths], self._rules)
            if decision.quarantine is not None:
                quarantined[decision.quarantine] = self._quarantine(decision.quarantine, what)
            if decision.wait is None:
                self._end_of_tries(lost, what)
                return
            await self._wait(lost, decision, what)
            failure = await self._start(lost, quarantined)
            if failure is None:
                return
            suspects = frozenset(map(Digest, failure.suspects))
            lost.serving.suspects = suspects
            death = Death(0.0, Cause.START, suspects)
            what = f"it did not come up again: {failure}"

    async def _wait(self, lost: Active, decision: Decision, what: str) -> None:
        assert decision.wait is not None, "a decision to start again has a wait"
        self._slot.start_at = time.monotonic() + decision.wait
        self._slot.back_at = self._slot.start_at + self._start_seconds
        self._slot.reason = f"its engine has died ({what}); it starts again in {decision.wait:g} s"
        self._tell.note(f"the engine has died: {what}; it starts again in {decision.wait:g} s")
        self._ledger.note(self._ledger.died, lost.deployment_id, self._slot.reason)
        await asyncio.sleep(decision.wait)

    async def _start(self, lost: Active, quarantined: dict[Digest, str]) -> StackedError | None:
        """Start an engine; why it did not come up. What a person has begun goes first."""
        began = time.monotonic()
        try:
            while True:
                await self._deployments.wait()
                try:
                    await self._deployments.again(lost, quarantined)
                    break
                except UpdateInProgress:
                    await asyncio.sleep(TICK_SECONDS)
        except StackedError as error:
            metrics.engine_restarted("failed")
            return error
        if self._is_lost(lost) or self._slot.active is None:
            return None
        self._start_seconds = time.monotonic() - began
        metrics.engine_restarted("succeeded")
        active = self._slot.active
        self._note_served(active)
        took = f"after {self._start_seconds:.0f} s"
        self._tell.finish(f"Group {active.name!r} is served again, {took}")
        return None

    def _note_served(self, active: Active) -> None:
        lacking = active.serving.live.lacking
        self._ledger.note(self._ledger.came_back, active.deployment_id, lacking)

    def _quarantine(self, adapter: Digest, what: str) -> str:
        """Why an adapter is not served; what is known of deaths begins anew."""
        self._deaths.clear()
        why = f"engines died with it repeatedly, the last time: {what}"
        self._tell.note(f"adapter {short(adapter)} is quarantined: {why}")
        return f"{why}. Load it again (POST /models/…), or deploy a group, to try it again"

    def _end_of_tries(self, lost: Active, what: str) -> None:
        reason = f"the engine died {self._rules.deaths} times in a row; the last time {what}"
        self._slot.empty(reason)
        self._ledger.note(self._ledger.died, lost.deployment_id, reason)
        self._give_up(reason)


def _cause(ended: Ended, hangs: bool) -> Cause:
    if hangs:
        return Cause.HANG
    if not ended.killed:
        return Cause.EXIT
    return Cause.OOM if ended.oom else Cause.SIGNAL
