"""One request, gathered while it runs and reported once when it has ended.

The line, the metrics and the usage are all of this one object, so that they agree.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from stacked import metrics, tracing
from stacked.api.replies import Tagged
from stacked.groups.routing import Route
from stacked.outcomes import Outcomes
from stacked.registry.outcomes import Tally
from stacked.registry.usage import Counts
from stacked.tracing import RawHeaders
from stacked.usage import Usage

logger = logging.getLogger("stacked.access")

# Longer paths than any of ours are somebody's probing.
_LONGEST_PATH = 200


class Access:
    """What is known of a request so far. `end` reports it; call that once, on every way out."""

    __slots__ = (
        "_admitted",
        "_began",
        "_labels",
        "_outcomes",
        "_routine",
        "_usage",
        "at_length",
        "caller",
        "error",
        "generated_tokens",
        "id",
        "method",
        "path",
        "prompt_tokens",
        "queued",
        "route",
        "span",
    )

    def __init__(
        self,
        id: str,
        method: str,
        path: str,
        usage: Usage | None = None,
        outcomes: Outcomes | None = None,
        *,
        headers: RawHeaders = (),
        routine: bool = False,
    ) -> None:
        """`usage`: where it is counted, if it may run a model; `outcomes`: what it got, if it is
        of an experiment.

        `headers` may name the trace that it is part of. `routine`: it is a probe, whose success is
        not worth a line or a span.
        """
        self.id, self.method, self.path = id, method, path
        self.caller = ""
        """Empty until the caller is known."""
        self.route: Route[Any] | None = None
        """Set by `admitted`."""
        self.queued: float | None = None
        """Seconds that it waited for its turn; None if it never got that far."""
        self.prompt_tokens = self.generated_tokens = 0
        self.at_length = False
        """Whether an answer ended as it had all of its tokens."""
        self.error = ""
        """The code of the error of ours that it was answered with."""
        self._usage = usage
        self._outcomes = outcomes
        self._routine = routine
        self._began = self._admitted = time.perf_counter()
        self._labels = ("", "")
        self.span = None if routine else tracing.of_request("stacked.request", self._began, headers)

    def admitted(self, route: Route[Any]) -> None:
        """It has a model and a lease, and runs from now on."""
        self.route, self._labels = route, route.labels
        self._admitted = time.perf_counter()
        metrics.request_began(*self._labels)
        if route.exposure is not None and self._outcomes is not None:
            self._outcomes.saw(route.exposure)
        if self.span is not None:
            self.span.part("stacked.admission", self._began, self._admitted)

    def waited(self, seconds: float) -> None:
        """How long the engine was busy with others; of several prompts, the longest."""
        metrics.queued(*self._labels, seconds)
        self.queued = max(self.queued or 0.0, seconds)
        if self.span is not None:
            now = time.perf_counter()
            self.span.part("stacked.queue", now - seconds, now)

    def count(self, prompt: int, generated: int, at_length: bool) -> None:
        """The tokens of one prompt. The engine may report those of an aborted one late."""
        metrics.tokens(*self._labels, prompt, generated)
        self.prompt_tokens += prompt
        self.generated_tokens += generated
        self.at_length |= at_length
        if self._usage is not None:
            tokens = Counts(prompt_tokens=prompt, generated_tokens=generated)
            self._usage.add(self.caller, self._labels[0], tokens)

    def end(self, reply: Tagged) -> None:
        """It has ended, as `reply` shows."""
        if self.route is not None:
            if reply.first_body is not None:
                metrics.first_byte(*self._labels, reply.first_body - self._admitted)
            metrics.request_ended(*self._labels, reply.status)
            if self.route.exposure is not None and self._outcomes is not None:
                self._outcomes.add(self.id, self.route.exposure, self._tally(reply))
        elif self._usage is not None:
            metrics.request_refused(reply.status)
        if self._usage is not None and self.caller:
            failed = reply.status is None or reply.status >= 400
            self._usage.add(self.caller, self._labels[0], Counts(1, int(failed)))
        logged = logger.isEnabledFor(logging.INFO) and not (self._routine and reply.status == 200)
        if not logged and self.span is None:
            return
        fields = self._fields(reply)
        if logged:
            logger.handle(_record(fields))
        if self.span is not None:
            failed = reply.status is None or reply.status >= 500
            self.span.end(fields, (self.error or "failed") if failed else "")

    def _tally(self, reply: Tagged) -> Tally:
        """What it got. Of a client that left nothing is known but that it was there."""
        if reply.status is None:
            return Tally()
        failed = reply.status >= 400 or reply.was_cut
        if failed or not reply.ended or reply.first_body is None:
            return Tally(answers=1, failed=int(failed))
        return Tally(
            answers=1,
            whole=1,
            seconds=time.perf_counter() - self._admitted,
            first_seconds=reply.first_body - self._admitted,
            output_tokens=self.generated_tokens,
            cut=int(self.at_length),
        )

    def _fields(self, reply: Tagged) -> dict[str, Any]:
        """The line's, in its order."""
        route, now = self.route, time.perf_counter()
        first = reply.first_body
        fields: dict[str, Any] = {
            "id": self.id,
            "credential": self.caller or None,
            "method": self.method,
            "path": self.path[:_LONGEST_PATH],
            "status": reply.status,
            "ended": _how(reply),
            "error": self.error or None,
            "seconds": round(now - self._began, 4),
            "first": None if first is None else round(first - self._began, 4),
        }
        if route is not None:
            fields |= {
                "key": route.label,
                "digest": route.digest or "base",
                "generation": route.generation,
                "queued": round(self.queued or 0.0, 4),
                "prompt_tokens": self.prompt_tokens,
                "generated_tokens": self.generated_tokens,
            }
            if route.exposure is not None:
                fields |= {"arm": route.exposure.arm, "phase": route.exposure.phase}
        return {name: value for name, value in fields.items() if value is not None}


def _record(fields: dict[str, Any]) -> logging.LogRecord:
    """Made here: where it was logged, and the id in front of its text, would not be shown."""
    record = logging.LogRecord(logger.name, logging.INFO, __file__, 0, "request", None, None)
    record.fields = fields
    return record


def _how(reply: Tagged) -> str:
    """How a response ended: whole, cut by us, or because the client left."""
    if reply.was_cut:
        return "cut"
    return "whole" if reply.ended else "left"
