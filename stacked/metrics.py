"""What is counted: requests by key and digest, swaps by outcome and phase, what is held now.

In prometheus_client's own registry, which is the one that vLLM's `/metrics` shows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# Every update brings new digests. Beyond this many series the least recently used are dropped: room
# for the largest group (500 members) and the three before it.
MOST_SERIES = 2000

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LABELS = ("key", "digest")

_requests = Counter(
    "stacked_requests",
    "Requests to models that ended, by status class; without a key, they ended before they had one",
    (*_LABELS, "status"),
)
_first_byte = Histogram(
    "stacked_first_byte_seconds",
    "From admission to the first byte of the body: a stream's first token, else the whole answer",
    _LABELS,
    buckets=_SECONDS,
)
_tokens = Counter("stacked_tokens", "Tokens of prompts and of answers", (*_LABELS, "kind"))
_queue = Histogram(
    "stacked_queue_seconds",
    "From the engine's door to its queue, for each prompt of a request",
    _LABELS,
    buckets=_SECONDS,
)
_resident = Gauge(
    "stacked_adapter_resident",
    "Whether an adapter is in the engine's host memory, and in a slot, as of this look",
    (*_LABELS, "place"),
)
_model_bytes = Gauge(
    "stacked_model_bytes",
    "Memory that a model without vLLM took when it was loaded, in one process",
    _LABELS,
)
_in_flight = Gauge("stacked_requests_in_flight", "Requests that hold a lease", _LABELS)
_refused = Counter("stacked_refused", "Requests refused by a limit, by its name", ("limit",))
_swaps = Counter("stacked_swaps", "LIVE updates that ended, by outcome", ("outcome",))
for _outcome in ("succeeded", "failed"):
    _swaps.labels(_outcome)  # a series that begins with 1 has no increase
_phases = Histogram(
    "stacked_swap_phase_seconds",
    "What each phase of a LIVE update took",
    ("phase",),
    buckets=_SECONDS,
)
_gate_score = Gauge(
    "stacked_gate_score", "The last mean score of a key on an evaluation set", ("gate", "key")
)
_gate_verdicts = Counter(
    "stacked_gate_verdicts", "Adapters that gates have judged, by outcome", ("gate", "outcome")
)
_gates_took = Histogram(
    "stacked_gate_seconds",
    "What the gates of a LIVE update took",
    buckets=(1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
)
_generation = Gauge("stacked_generation", "The generation of the group that is served")
_adapters = Gauge("stacked_adapters", "Distinct adapters of the group that is served")
_quarantined = Gauge("stacked_quarantined_adapters", "Adapters that the engine died with")
ENGINE_STATES = ("none", "starting", "serving", "restarting", "failed")
GATES = ("open", "held", "closed")
_engine = Gauge("stacked_engine_state", "1 for what the engine does now", ("state",))
_deaths = Counter("stacked_engine_deaths", "Engines that died while they served", ("cause",))
for _cause in ("exit", "signal", "oom", "hang"):
    _deaths.labels(_cause)
_restarts = Counter("stacked_engine_restarts", "Starts after a death, by outcome", ("outcome",))
_model_restarts = Counter(
    "stacked_model_process_restarts", "Processes of models that ended by themselves", ("runtime",)
)
_shadowed = Counter(
    "stacked_shadow_requests", "Copies of requests, by outcome", ("key", "to", "outcome")
)
_shadow_scored = Counter(
    "stacked_shadow_scored", "Copies whose served answers both models scored", ("key", "to")
)
_shadow_nats = Counter(
    "stacked_shadow_nats",
    "Minus the mean logprob of served answers, under the model that gave it and under the other",
    ("key", "to", "model"),
)
_stored = Gauge("stacked_store_bytes", "Content in the stores, as of the last round", ("kind",))
_disk = Gauge("stacked_disk_bytes", "The disk of the data directory", ("kind",))

_exposures = Counter(
    "stacked_experiment_exposures",
    "Answers of experiments, by the key of the arm that gave them",
    ("experiment", "arm"),
)
_feedback = Counter(
    "stacked_experiment_feedback", "Values of feedback that were stored", ("experiment",)
)
_dropped = Counter(
    "stacked_experiment_dropped",
    "What is no part of a result: units and answers beyond their bounds, and what was not written",
    ("what",),
)

_fleet_gate = Gauge(
    "stacked_fleet_gate", "1 for whether requests are admitted to this replica", ("state",)
)
_fleet_generation = Gauge(
    "stacked_fleet_generation", "The generation that is loaded in this replica; 0: none"
)
_fleet_lease = Gauge(
    "stacked_fleet_lease_seconds", "How long this replica serves on without the fleet's database"
)
_fleet_held = Histogram(
    "stacked_fleet_held_seconds",
    "How long requests waited for the other replicas at a switch",
    buckets=_SECONDS,
)
_fleet_wanted = Gauge(
    "stacked_fleet_wanted_instances",
    "How many replicas the deployment's scaling policy wants; 0: its record has none",
    ("bound",),
)
_fleet_said = Gauge(
    "stacked_fleet_wanted_since_seconds", "When that record was changed last; 0: it was not read"
)
_fleet_failures = Counter(
    "stacked_fleet_store_failures", "Operations of the fleet that its database did not answer"
)

# How many requests are in flight under each, the most recently used last.
_used: OrderedDict[tuple[str, str], int] = OrderedDict()
_TOKEN_KINDS = ("prompt", "generated")
_DROPS = ("load", "queue", "change", "unfinished", "unsuitable")
_OUTCOMES = ("same", "different", "sampled", "failed", *(f"dropped_{why}" for why in _DROPS))
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


def queued(key: str, digest: str, seconds: float) -> None:
    _queue.labels(key, digest).observe(seconds)


def resident(adapters: Mapping[tuple[str, str], tuple[bool, bool]]) -> None:
    """By key and digest: whether it is in host memory, and whether it is in a slot."""
    _resident.clear()
    for labels, places in adapters.items():
        for place, there in zip(("host", "slot"), places, strict=True):
            _resident.labels(*labels, place).set(there)


def model_bytes(sizes: Mapping[tuple[str, str], int]) -> None:
    """By key and digest."""
    _model_bytes.clear()
    for labels, size in sizes.items():
        _model_bytes.labels(*labels).set(size)


def model_process_ended(runtime: str) -> None:
    """A process of models ended, and another one is started."""
    _model_restarts.labels(runtime).inc()


def tokens(key: str, digest: str, prompt: int, generated: int) -> None:
    """The tokens of one prompt; called for each prompt of a request."""
    for kind, count in zip(_TOKEN_KINDS, (prompt, generated), strict=True):
        _tokens.labels(key, digest, kind).inc(count)


def request_ended(key: str, digest: str, status: int | None) -> None:
    """`status` is None if the client left before the response began."""
    _requests.labels(key, digest, _class_of(status)).inc()
    _in_flight.labels(key, digest).dec()
    _used[key, digest] -= 1


def request_refused(status: int | None) -> None:
    """A request to a model ended before it had one."""
    _requests.labels("", "", _class_of(status)).inc()


def _class_of(status: int | None) -> str:
    return "gone" if status is None else f"{status // 100}xx"


def refused(limit: str) -> None:
    _refused.labels(limit).inc()


def exposed(experiment: str, arm: str) -> None:
    """An answer of an experiment."""
    _exposures.labels(experiment, arm).inc()


def feedback(experiment: str) -> None:
    """A value of feedback was stored."""
    _feedback.labels(experiment).inc()


def outcomes_dropped(what: str, count: int = 1) -> None:
    """`what`: units, answers or unwritten."""
    _dropped.labels(what).inc(count)


def swap_ended(outcome: str, seconds: Mapping[str, float]) -> None:
    """`outcome` is `succeeded` or `failed`; `seconds` by phase."""
    _swaps.labels(outcome).inc()
    for phase, took in seconds.items():
        _phases.labels(phase).observe(took)


def judged(gate: str, key: str, score: float, passed: bool) -> None:
    """A gate has judged what comes to a key."""
    _gate_score.labels(gate, key).set(score)
    _gate_verdicts.labels(gate, "passed" if passed else "refused").inc()


def gates_took(seconds: float) -> None:
    """All gates of one update."""
    _gates_took.observe(seconds)


def serving(generation: int, adapters: int, quarantined: int = 0) -> None:
    _generation.set(generation)
    _adapters.set(adapters)
    _quarantined.set(quarantined)


def engine_state(state: str) -> None:
    """One of ENGINE_STATES."""
    for each in ENGINE_STATES:
        _engine.labels(each).set(each == state)


def engine_died(cause: str) -> None:
    """`cause`: exit, signal, oom or hang."""
    _deaths.labels(cause).inc()


def engine_restarted(outcome: str) -> None:
    """`outcome` is `succeeded` or `failed`."""
    _restarts.labels(outcome).inc()


def fleet(gate: str, generation: int, lease: float) -> None:
    """`gate` is one of GATES; `lease` in seconds."""
    for each in GATES:
        _fleet_gate.labels(each).set(each == gate)
    _fleet_generation.set(generation)
    _fleet_lease.set(lease)


def fleet_wanted(least: int, most: int, since: float) -> None:
    """What a record says that was changed at `since`."""
    for bound, count in (("least", least), ("most", most)):
        _fleet_wanted.labels(bound).set(count)
    _fleet_said.set(since)


def fleet_held(seconds: float) -> None:
    """Requests are no longer held."""
    _fleet_held.observe(seconds)


def fleet_store_failed() -> None:
    _fleet_failures.inc()


def shadowed(key: str, to: str, outcome: str) -> None:
    """A copy of a request to `key` for `to` has ended, or was not made."""
    _shadowed.labels(key, to, outcome).inc()


def shadow_scored(key: str, to: str, served: float, shadow: float) -> None:
    """The mean logprobs, by token, of an answer under two models."""
    _shadow_scored.labels(key, to).inc()
    _shadow_nats.labels(key, to, "served").inc(-served)
    _shadow_nats.labels(key, to, "shadow").inc(-shadow)


def forget_shadow(key: str, to: str) -> None:
    for outcome in _OUTCOMES:
        _remove(_shadowed, (key, to, outcome))
    _remove(_shadow_scored, (key, to))
    for model in ("served", "shadow"):
        _remove(_shadow_nats, (key, to, model))


def disk(free: int, total: int, stored: Mapping[str, int]) -> None:
    """The result of a round of collecting; `stored` by kind."""
    _disk.labels("free").set(free)
    _disk.labels("total").set(total)
    for kind in ("adapter", "base", "model"):
        _stored.labels(kind).set(stored.get(kind, 0))


def _forget(labels: tuple[str, str]) -> None:
    del _used[labels]
    for metric in (_first_byte, _queue, _in_flight):
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


class Waiting(Protocol):
    """Whoever has requests wait for the engine."""

    @property
    def slot_changes(self) -> int: ...

    def waiting(self) -> Mapping[str, int]:
        """How many wait, by key; keys of which none waits are left out."""


class _Queue(Collector):
    """What waits for the engine of now, counted when somebody looks."""

    source: Waiting | None = None

    def collect(self) -> Iterator[Metric]:
        text = "Requests that wait for the engine, by key"
        waiting = GaugeMetricFamily("stacked_requests_waiting", text, labels=("key",))
        text = "Adapters that took the place of another one in a slot"
        changes = CounterMetricFamily("stacked_slot_changes", text)
        if self.source is not None:
            for key, count in self.source.waiting().items():
                waiting.add_metric((key,), count)
            changes.add_metric((), self.source.slot_changes)
        yield from (waiting, changes)


_engine_queue = _Queue()
REGISTRY.register(_engine_queue)


def watch(source: Waiting | None) -> None:
    """Show the queue of this engine from now on."""
    _engine_queue.source = source


LORA_INFO = "vllm:lora_requests_info"
_LORA_LABELS = ("running_lora_adapters", "waiting_lora_adapters")
Names = Callable[[], Mapping[str, Sequence[str]]]


class LoraInfo(Collector):
    """vLLM's gauge of the adapters with requests, in which they have their inference keys.

    Gateways route by it (Gateway API Inference Extension, AIBrix). The engine's name of an adapter
    is `<digest>.<number>`; a digest under several keys has all of them, one that is no longer
    served has none. vLLM sets a series for each combination to the time, and readers take the
    newest: only that one is exposed, and the others are dropped.
    """

    def __init__(self, gauge: Any, names: Names) -> None:
        self._gauge = gauge
        self._names = names
        self._name = LORA_INFO  # vLLM unregisters its own by this before it starts another engine

    def describe(self) -> Any:
        """The names for the registry, which do not depend on what is served."""
        return self._gauge.describe()

    def collect(self) -> Iterator[Metric]:
        names = self._names()
        for family in self._gauge.collect():
            newest = max(family.samples, key=lambda sample: sample.value, default=None)
            for sample in family.samples:
                if sample is not newest:
                    _remove(self._gauge, tuple(sample.labels[n] for n in self._gauge._labelnames))
            if newest is not None:
                renamed = {label: _keys(newest.labels[label], names) for label in _LORA_LABELS}
                family.samples = [newest._replace(labels={**newest.labels, **renamed})]
            yield family


def name_adapters(names: Names) -> None:
    """Name the adapters of vLLM's gauge by inference key from now on: digest -> keys.

    Does nothing if vLLM keeps no statistics, and so has no such gauge.
    """
    gauge: Any = REGISTRY._names_to_collectors.get(LORA_INFO)
    if gauge is None:
        return
    REGISTRY.unregister(gauge)
    REGISTRY.register(LoraInfo(getattr(gauge, "_gauge", gauge), names))


def _keys(adapters: str, names: Mapping[str, Sequence[str]]) -> str:
    """The keys of a list such as `sha256:….3,sha256:….7`; a comma in a key is written `%2C`."""
    digests = (each.rpartition(".")[0] for each in adapters.split(","))
    found = (key.replace(",", "%2C") for digest in digests for key in names.get(digest, ()))
    return ",".join(dict.fromkeys(found))
