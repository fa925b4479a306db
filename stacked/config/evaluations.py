"""Evaluation sets: prompts with the answers that are wanted, a metric, and what is good enough.

A file describes one. A group carries its sets whole, so that what judged it is a part of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from stacked.config.fields import Frozen, Key

MAX_EXAMPLES = 1000

# Of the request; which model it goes to and how it comes back are not the example's to say.
_NOT_OURS = frozenset({"model", "stream", "stream_options", "n", "echo", "priority"})


class Example(Frozen):
    """One request of OpenAI's form, and what is wanted of its answer.

    Any further field is a parameter of that request.
    """

    model_config = ConfigDict(extra="allow")

    messages: tuple[dict[str, Any], ...] | None = None
    prompt: str | None = None
    expected: Any = None

    @model_validator(mode="after")
    def _is_a_request(self) -> Example:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give messages, or a prompt")
        if taken := _NOT_OURS.intersection(self.model_extra or ()):
            raise ValueError(f"{min(taken)} is not a parameter of an example; leave it out")
        return self


class EvaluationConfig(Frozen):
    """One evaluation set, and as a gate: which adapters it judges, and what they must reach."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[\w.-]+$")
    keys: tuple[Key, ...] = ()
    """As a gate: the members that it judges, which may be arms of an experiment."""
    metric: str = Field(default="exact", max_length=255, pattern=r"^[\w.]+(:[\w.]+)?$")
    """exact, contains, regex, json, schema, logprob, or a function: see `stacked.experiments`."""
    ignore: tuple[Literal["case", "space", "closing"], ...] = ()
    """For exact and contains: what makes no difference. `closing`: punctuation at the end."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Of every request, such as `max_tokens`; an example's own come first."""
    threshold: float | None = None
    """The least mean score."""
    margin: float | None = Field(default=None, ge=0)
    """By how much the mean may be less than that of what is served now."""
    confidence: float = Field(default=0.95, ge=0.5, le=0.999)
    """How sure it must be that the difference is within the margin."""
    against: Key | None = None
    """What is served that a candidate is compared with; None: what has its own key."""
    examples: Annotated[tuple[Example, ...], Field(min_length=1, max_length=MAX_EXAMPLES)]

    @model_validator(mode="after")
    def _parameters_are_a_requests(self) -> EvaluationConfig:
        if taken := _NOT_OURS.intersection(self.parameters):
            raise ValueError(f"{min(taken)} is not a parameter of an example; leave it out")
        return self

    def check_gate(self) -> None:
        """Raises ValueError for a set that judges nothing."""
        if not self.keys:
            raise ValueError(f"gate {self.name}: keys is empty; name the members that it judges")
        if self.threshold is None and self.margin is None:
            raise ValueError(
                f"gate {self.name}: set threshold, the least mean score, or margin, by how much "
                "it may be less than that of what is served"
            )


class GatesConfig(Frozen):
    """What the gates of a group may take of the engine that serves, on this server."""

    seconds: float = Field(default=600, gt=0, le=86_400)
    """How long all gates of an update may take; an update whose gates take longer fails."""
    tokens: int = Field(default=1_000_000, ge=1)
    """Tokens of their prompts and answers; an update whose gates take more fails."""
    parallel: int = Field(default=1, ge=1, le=64)
    """Requests that the engine has of them at a time. More are faster, and lengthen the steps of
    clients' requests."""
    samples: int = Field(default=3, ge=0, le=50)
    """How many of the worst examples are reported with their texts; 0: none."""
    functions: dict[str, str] = Field(default_factory=dict)
    """Metrics of your own: name -> `module:function`. A group can only name them."""
