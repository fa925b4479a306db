"""Records work on a deployment as it proceeds: percentages, lines, reasons, and the commit.

Everything goes to the ledger's writing thread, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from stacked.core import Digest, ModelGroup
from stacked.deployment.ledger import Ledger
from stacked.errors import StackedError
from stacked.registry import DeployedMember, Deployment, MemberState
from stacked.steps import Progress, Silent, Step, sentence


class WorkProgress:
    """Progress that is recorded in a work request, and passed on."""

    def __init__(self, ledger: Ledger, work_id: str, inner: Progress) -> None:
        self._ledger = ledger
        self._registry = ledger.registry
        self._work_id = work_id
        self._inner = inner
        self._percent = 0.0

    def step(self, step: Step, done: float = 0.0, detail: str = "") -> None:
        self._inner.step(step, done, detail)
        self._percent = max(self._percent, step.percent(done))
        self._log(sentence(step, detail), step)

    def note(self, text: str) -> None:
        self._inner.note(text)
        self._log(text)

    def finish(self, text: str) -> None:
        self._inner.finish(text)
        self._log(text)

    def _log(self, line: str, step: Step | None = None) -> None:
        advance, name = self._registry.work_requests.advance, step.name if step else None
        self._ledger.write(partial(advance, self._work_id, self._percent, line, name))


class UpdateJournal(WorkProgress):
    """One LIVE update's. `settle` is called when it can no longer be undone."""

    def __init__(
        self,
        ledger: Ledger,
        work_id: str,
        deployment: Deployment,
        group_id: str,
        wanted: ModelGroup,
        settle: Callable[[], None],
    ) -> None:
        super().__init__(ledger, work_id, Silent())
        self._deployment_id = deployment.id
        self._group_id = group_id
        self._wanted = wanted
        self._settle = settle
        self._blamed: dict[Digest, StackedError] = {}

    def refused(self, adapter: Digest, error: StackedError) -> None:
        self._blamed[adapter] = error

    def commit(self, generation: int) -> Coroutine[Any, Any, None]:
        # At the call, not when the commit is first run: a cancellation might come between.
        self._settle()
        return self._commit(generation)

    async def _commit(self, generation: int) -> None:
        # First, so that no reader finds the new group without its members while the old one drains.
        put = self._registry.deployments.put_members
        await self._ledger.do(put, self._deployment_id, self._group_id, self._members())
        what: tuple[Any, ...] = (self._deployment_id, self._group_id, generation, self._work_id)
        await self._ledger.do(self._registry.deployments.commit, *what)

    async def tell_members(self) -> None:
        """Write every member's state, with the reason of each."""
        for member in self._wanted:
            blame = self._blamed.get(member.content.digest)
            if blame is not None:
                error = (self._work_id, blame.code, str(blame), member.model_id)
                await self._ledger.with_retry(self._registry.work_requests.add_error, *error)
        put = self._registry.deployments.put_members
        await self._ledger.with_retry(put, self._deployment_id, self._group_id, self._members())

    def _members(self) -> list[DeployedMember]:
        base = self._wanted.base
        good, bad = MemberState.SUCCESS, MemberState.FAILED
        states = [DeployedMember(model_id=base.model_id, key=base.key, state=good)] if base else []
        for member in self._wanted:
            blame = self._blamed.get(member.content.digest)
            states.append(
                DeployedMember(
                    model_id=member.model_id,
                    key=member.key,
                    state=bad if blame else good,
                    reason=str(blame or ""),
                )
            )
        return states
