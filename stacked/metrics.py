"""What is counted: requests by key and digest, swaps by outcome and phase, what is held now.

In prometheus_client's own registry, which is the one that vLLM's `/metrics` shows. It must not know
requests or engines; callers tell it numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

# Every update brings new digests: the series of those unused for longest are dropped beyond this.
MOST_SERIES = 2000

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LABELS = ("key", "digest")

_requests = Counter(
    "stacked_requests", "Requests that ended, by status class", (*_LABELS, "status")
)
_first_byte = Histogram(
    "stacked_first_byte_seconds",
    "From admission to the first byte of the body: a stream's first token, else the whole answer",
    _LABELS,
    buckets=_SECONDS,
)
_tokens = Counter("stacked_tokens", "Tokens of prompts and of answers", (*_LABELS, "kind"))
_in_flight = Gauge("stacked_requests_in_flight", "Requests that hold a lease", _LABELS)
_swaps = Counter("stacked_swaps", "LIVE updates that ended, by outcome", ("outcome",))
_phases = Histogram(
    "stacked_swap_phase_seconds",
    "What each phase of a LIVE update took",
    ("phase",),
    buckets=_SECONDS,
)
_generation = Gauge("stacked_generation", "The generation of the group that is served")
_adapters = Gauge("stacked_adapters", "Distinct adapters of the group that is served")

# How many requests are in flight under each, those used last at the end.
_used: OrderedDict[tuple[str, str], int] = OrderedDict()
_TOKEN_KINDS = ("prompt", "generated")
_STATUSES = ("2xx", "4xx", "5xx", "gone")


def request_began(key: str, digest: str) -> None:
    """A request was admitted. Follow with `request_ended` for the same labels."""
    labels = (key, digest)
    _used[labels] = _used.get(labels, 0) + 1
    _used.move_to_end(labels)
    _in_flight.labels(*labels).inc()
    if len(_used) > MOST_SERIES:
        idle = next((old for old, running in _used.items() if not running), None)
        if idle is not None:
            _forget(idle)


def first_byte(key: str, digest: str, seconds: float) -> None:
    _first_byte.labels(key, digest).observe(seconds)


def tokens(key: str, digest: str, prompt: int, generated: int) -> None:
    """What one prompt cost; a request of several prompts tells this for each."""
    for kind, count in zip(_TOKEN_KINDS, (prompt, generated), strict=True):
        _tokens.labels(key, digest, kind).inc(count)


def request_ended(key: str, digest: str, status: int | None) -> None:
    """`status` is None where the client left before an answer had begun."""
    kind = "gone" if status is None else f"{status // 100}xx"
    _requests.labels(key, digest, kind).inc()
    _in_flight.labels(key, digest).dec()
    _used[key, digest] -= 1


def swap_ended(outcome: str, seconds: Mapping[str, float]) -> None:
    """`outcome` is `succeeded` or `failed`; `seconds` by phase."""
    _swaps.labels(outcome).inc()
    for phase, took in seconds.items():
        _phases.labels(phase).observe(took)


def serving(generation: int, adapters: int) -> None:
    _generation.set(generation)
    _adapters.set(adapters)


def _forget(labels: tuple[str, str]) -> None:
    del _used[labels]
    for metric in (_first_byte, _in_flight):
        _remove(metric, labels)
    for status in _STATUSES:
        _remove(_requests, (*labels, status))
    for kind in _TOKEN_KINDS:
        _remove(_tokens, (*labels, kind))


def _remove(metric: Counter | Gauge | Histogram, labels: tuple[str, ...]) -> None:
    try:
        metric.remove(*labels)
    except KeyError:  # nothing was counted under these
        return
