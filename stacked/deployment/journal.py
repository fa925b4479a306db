"""How work on a deployment is written down as it goes: percentages, lines, reasons, and the commit.

Everything goes to the ledger's writing thread, in order. It must not know how the work is done.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from stacked.core import Digest, ModelGroup, Progress
from stacked.deployment.ledger import Ledger
from stacked.errors import StackedError
from stacked.live import Phase
from stacked.registry import DeployedMember, Deployment, MemberState

# Where each phase of a LIVE update begins on the way to 100; its own share is spread over it.
_BEGINS = {
    Phase.PLAN: 0.0,
    Phase.STAGE: 2.0,
    Phase.VERIFY: 60.0,
    Phase.COMMIT: 75.0,
    Phase.SWITCH: 80.0,
    Phase.DRAIN: 82.0,
    Phase.REMOVE: 95.0,
    Phase.DONE: 99.0,
}
# The same for the steps of a start, by how each begins to be told.
_STEPS = (
    ("Reading", 1.0, 5.0),
    ("Importing vLLM", 5.0, 15.0),
    ("Starting the engine", 15.0, 55.0),
    ("Warming", 55.0, 60.0),
    ("Loading adapters", 60.0, 85.0),
    ("Draining", 90.0, 97.0),
    ("Stopping", 97.0, 99.0),
)
_COUNTED = re.compile(r" (\d+)/(\d+)$")


class WorkProgress:
    """Progress that is written into a work request, and told to somebody beside."""

    def __init__(self, ledger: Ledger, work_id: str, beside: Progress) -> None:
        self._ledger = ledger
        self._work_id = work_id
        self._beside = beside
        self._percent = 0.0

    def step(self, text: str) -> None:
        self._beside.step(text)
        self._percent = max(self._percent, percent_of(text))
        self._tell(text)

    def note(self, text: str) -> None:
        self._beside.note(text)
        self._tell(text)

    def finish(self, text: str) -> None:
        self._beside.finish(text)
        self._tell(text)

    def _tell(self, text: str) -> None:
        advance = self._ledger.registry.advance
        self._ledger.write(partial(advance, self._work_id, self._percent, text))


def percent_of(step: str) -> float:
    """How much of a start is done when this step begins; 0 for what is not a known step."""
    for begins, low, high in _STEPS:
        if step.startswith(begins):
            counted = _COUNTED.search(step)
            share = int(counted[1]) / int(counted[2]) if counted else 0.0
            return low + (high - low) * share
    return 0.0


class UpdateJournal:
    """One LIVE update's own lines. `settle` is called when it cannot be taken back any more."""

    def __init__(
        self,
        ledger: Ledger,
        work_id: str,
        deployment: Deployment,
        group_id: str,
        wanted: ModelGroup,
        settle: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._registry = ledger.registry
        self._work_id = work_id
        self._deployment_id = deployment.id
        self._group_id = group_id
        self._wanted = wanted
        self._settle = settle
        self._blamed: dict[Digest, StackedError] = {}

    def phase(self, phase: Phase, done: float, text: str) -> None:
        begins = list(_BEGINS.values())
        at = list(_BEGINS).index(phase)
        ends = begins[at + 1] if at + 1 < len(begins) else begins[at]
        percent = begins[at] + (ends - begins[at]) * done
        line = f"{phase.value}: {text}"
        self._ledger.write(partial(self._registry.advance, self._work_id, percent, line))

    def refused(self, adapter: Digest, error: StackedError) -> None:
        self._blamed[adapter] = error

    def commit(self, generation: int) -> Coroutine[Any, Any, None]:
        # At the call, not when the commit is first run: a cancellation might come between.
        self._settle()
        return self._commit(generation)

    async def _commit(self, generation: int) -> None:
        # First, so that nobody finds the new group without its members while the old one drains.
        put = self._registry.put_member_states
        await self._ledger.do(put, self._deployment_id, self._group_id, self._members())
        what: tuple[Any, ...] = (self._deployment_id, self._group_id, generation, self._work_id)
        await self._ledger.do(self._registry.commit_group, *what)

    async def tell_members(self) -> None:
        """Write every member.s state, with the reason of each."""
        for member in self._wanted:
            blame = self._blamed.get(member.adapter.digest)
            if blame is not None:
                told = (self._work_id, blame.code, str(blame), member.model_id)
                await self._ledger.with_retry(self._registry.add_error, *told)
        put = self._registry.put_member_states
        await self._ledger.with_retry(put, self._deployment_id, self._group_id, self._members())

    def _members(self) -> list[DeployedMember]:
        base = self._wanted.base
        good, bad = MemberState.SUCCESS, MemberState.FAILED
        states = [DeployedMember(model_id=base.model_id, key=base.key, state=good)]
        for member in self._wanted:
            blame = self._blamed.get(member.adapter.digest)
            states.append(
                DeployedMember(
                    model_id=member.model_id,
                    key=member.key,
                    state=bad if blame else good,
                    reason=str(blame or ""),
                )
            )
        return states
