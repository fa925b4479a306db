"""Adapters being loaded into one vLLM worker: read in a thread, adopted in its loop in small parts.

A thread reads the file and converts its numbers, in a few large operations that leave
the interpreter to the loop. The rest is Python and belongs to the loop, a bounded part per call, so
that no step waits long: vLLM's own loader makes a model of what was read, its scaling is multiplied
in, and it is packed as vLLM packs it. Nothing else can see that model until ``adopt`` puts it where
vLLM finds its adapters, in one assignment. ``activate`` copies it into a free slot, a few layers
per call; an adapter that is not activated is copied by vLLM at its first request.

Relies on: ``worker_extension_cls`` becomes a base of the worker's class, which
has ``model_runner.lora_manager`` and ``device``.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

from stacked.engine.adaptable import describe
from stacked.engine.causes import first_line
from stacked.engine.cpu_affinity import give_core, hand_over_soon, step_aside, take_core
from stacked.engine.loras import Dropped, Job, VllmLoras

# Adapters that are read at once, as many as the loader stages together.
_READERS = 8

# Adapters of a start that are read while one is built, which takes longer than reading one from a
# page cache: the next, and one more in case that one is slow. Each holds its tensors in memory.
_AHEAD = 2


class Stager:
    """The jobs of one worker. Its methods are called by the worker's loop and return at once."""

    def __init__(self, loras: Any, step_aside: Callable[[], None]) -> None:
        self._loras = loras
        # They stay, and the first one begins now: a new thread runs on the core of the loop that
        # starts it, until it has stepped aside.
        self._readers = ThreadPoolExecutor(_READERS, "stacked-stage", initializer=step_aside)
        self._readers.submit(int)
        self._jobs: dict[int, Job] = {}

    def stage(self, number: int, name: str, path: str) -> None:
        """Start to read an adapter. Nothing changes for one that is already staged."""
        if number in self._jobs or self._loras.holds(number):
            return
        job = self._jobs[number] = Job(number, name, path)
        self._readers.submit(self._read, job)

    def load(self, wanted: Sequence[tuple[int, str, str]]) -> None:
        """Stage and adopt these at once, in the loop: for a start, before any request.

        The next ones are read while one is built. Raises RuntimeError with the name of the first
        that fails; those before it stay.
        """
        jobs = [Job(*each, urgent=True) for each in wanted if not self._loras.holds(each[0])]
        waiting = iter(jobs)
        reading = deque((job, self._read_ahead(job)) for job in islice(waiting, _AHEAD))
        try:
            while reading:
                job, read = reading.popleft()
                reading.extend((each, self._read_ahead(each)) for each in islice(waiting, 1))
                read.result()
                for _ in self._loras.build(job):
                    pass
                self._loras.register(job.model)
        except Exception as error:
            raise RuntimeError(f"{job.name}: {first_line(error)}") from error
        finally:
            for job, _ in reading:
                job.dropped = True

    def _read_ahead(self, job: Job) -> Future[None]:
        return self._readers.submit(self._loras.read, job)

    def _read(self, job: Job) -> None:
        try:
            self._loras.read(job)
            job.state = "building"
        except Dropped:
            return
        except Exception as error:  # noqa: BLE001  any failure to read a file is reported
            job.reason, job.state = first_line(error), "failed"

    def advance(self, numbers: Sequence[int], seconds: float) -> list[tuple[str, str]]:
        """Continue the loop's part of the work for about `seconds`; the state of each in order."""
        until = time.perf_counter() + seconds
        for number in numbers:
            job = self._jobs.get(number)
            if job is not None and job.state == "building":
                self._build(job, until)
                if time.perf_counter() >= until:
                    break
        return [self.state(number) for number in numbers]

    def _build(self, job: Job, until: float) -> None:
        job.work = job.work or self._loras.build(job)
        try:
            began = time.perf_counter()
            for _ in job.work:
                now = time.perf_counter()
                if now + (now - began) > until:  # the next part is like the last one
                    return
                began = now
            job.state = "ready"
        except Exception as error:  # noqa: BLE001  any fault that vLLM finds is reported
            job.reason, job.state = first_line(error), "failed"

    def state(self, number: int) -> tuple[str, str]:
        """ "reading", "ready", "failed" with the reason, "adopted", or "absent"."""
        job = self._jobs.get(number)
        if job is not None:
            return job.state, job.reason
        return ("adopted" if self._loras.holds(number) else "absent"), ""

    def adopt(self, number: int) -> None:
        """Hand a ready adapter to vLLM. Idempotent. Raises RuntimeError, with nothing changed."""
        if self._loras.holds(number):
            return
        state, reason = self.state(number)
        if state != "ready":
            raise RuntimeError(f"adapter {number} cannot be adopted: {state} {reason}".rstrip())
        self._loras.register(self._jobs[number].model)
        del self._jobs[number]

    def discard(self, *numbers: int) -> None:
        """Forget adapters that are staged and not adopted, whether or not they have been read."""
        for number in numbers:
            job = self._jobs.pop(number, None)
            if job is not None:
                job.dropped = True  # what a thread still reads is dropped with the job
                last = [job, job.work]
                job.work = None
                del job
                self._loras.free(last)

    def staged(self) -> list[int]:
        return sorted(self._jobs)


class Commands(Stager):
    """What the engine may ask of one worker. All values are such as a message can carry."""

    def __init__(self, worker: Any) -> None:
        hand_over_soon()
        self._loader = worker.model_runner.lora_manager
        aside = partial(step_aside, worker.device)
        loras = VllmLoras(self._loader, aside)
        super().__init__(loras, aside)
        self.activate = loras.activate
        self.take_core, self.give_core = take_core, give_core

    def remove(self, *numbers: int) -> None:
        """Remove adapters; absent ones are ignored."""
        for number in numbers:
            self._loras.remove(number)

    def settle(self) -> None:
        """Exempt all objects made so far from garbage collection, for good.

        Traversing them takes seconds, at any moment. vLLM does the same in its other processes.
        """
        gc.collect()
        gc.freeze()

    def adaptable(self) -> str:
        """Which modules of the base adapters are applied to, see `adaptable.describe`."""
        return describe(self._loader._adapter_manager).to_json().decode()

    def resident(self) -> list[list[int]]:
        """Numbers staged, in host memory, and in each slot (0 for nothing)."""
        return [self.staged(), *self._loras.resident()]

    def warm(self, number: int, name: str, path: str) -> None:
        """Put an adapter of zeros into a slot, for one request that touches all of its memory."""
        from vllm.lora.request import LoRARequest

        self._loader.add_dummy_lora(LoRARequest(name, number, path), rank=1)


class StagingWorker:
    """vLLM's `worker_extension_cls`, whose methods `collective_rpc` may call on every worker.

    vLLM adds it to the bases of its own worker class, so its names have a prefix.
    """

    def stacked_call(self, command: str, *args: Any) -> Any:
        """Call a method of the worker's `Commands`, which are made at the first call."""
        commands = self.__dict__.get("_stacked_commands")
        if commands is None:
            commands = self.__dict__["_stacked_commands"] = Commands(self)
        return getattr(commands, command)(*args)
