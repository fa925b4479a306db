"""Every way Stacked can fail: one class per cause, each with a stable code and a message.

No class here knows HTTP: status codes are in one table in `stacked/api/errors.py`.
"""

from __future__ import annotations

from typing import ClassVar


class StackedError(Exception):
    """Base of all errors. `str(error)` is a message that says what to do.

    `code` is the class's name: clients and scripts compare it, so that a class keeps its name.
    """

    code: ClassVar[str] = "InternalError"
    retry_after: float | None = None
    """In how many seconds the same may succeed, where that is known."""
    suspects: frozenset[str] = frozenset()
    """Digests of what was being loaded, one of which is the cause, where that is known."""

    def __init_subclass__(cls) -> None:
        cls.code = cls.__name__

    @classmethod
    def tree(cls) -> list[type[StackedError]]:
        """This class and every class below it."""
        return [cls, *(sub for child in cls.__subclasses__() for sub in child.tree())]


class ConfigError(StackedError):
    """What a file or a request configures."""


class ConfigInvalid(ConfigError):
    """The file or environment says something impossible."""


class EngineOptionInvalid(ConfigError):
    """vLLM has no such option, or not with such a value."""


class GroupInvalid(ConfigError):
    """Keys or ids of a group clash."""


class SetupError(StackedError):
    """This machine, what is installed and stored on it."""


class EngineNotInstalled(SetupError):
    """No vLLM here, or one outside the supported range."""


class BaseNotFound(SetupError):
    """Neither a directory nor a Hub id nor a known name."""


class BaseUnsupported(SetupError):
    """A base that this vLLM cannot build, or not with adapters."""


class PrepareFailed(SetupError):
    """A base could not be fetched or converted."""


class StoreUnusable(SetupError):
    """The adapter store cannot be written: disk full, no permission."""


class KeyFileInvalid(SetupError):
    """A signing key cannot be made, found or removed as asked."""


class PlanError(StackedError):
    """What does not fit this machine."""


class GroupImpossible(PlanError):
    """The group cannot fit this machine; the arithmetic is shown."""


class AdapterError(StackedError):
    """An adapter that is refused before it reaches the engine."""


class SourceNotFound(AdapterError):
    """Nothing exists where the source points."""


class SourceRefused(AdapterError):
    """A scheme or place that may not be read."""


class SourceUnreachable(AdapterError):
    """The network or a server said no."""


class ArchiveInvalid(AdapterError):
    """Not a zip or tar that can be read."""


class PathUnsafe(AdapterError):
    """A link, an absolute or `..` path that leads out."""


class AdapterTooLarge(AdapterError):
    """Over the size, count or ratio limit."""


class FileMissing(AdapterError):
    """`adapter_config.json` or the weights are not there."""


class PickleRefused(AdapterError):
    """Weights as a pickle, which can run code."""


class AdapterConfigInvalid(AdapterError):
    """`adapter_config.json` is not what PEFT writes."""


class AdapterUnsupported(AdapterError):
    """DoRA and others that this engine cannot serve, by name."""


class RankRefused(AdapterError):
    """A rank that vLLM or this engine does not support."""


class WeightsInvalid(AdapterError):
    """Not a readable safetensors file of floats, or cut short."""


class ModuleUnknown(AdapterError):
    """A tensor for a module that this base does not have."""


class ModuleUnapplied(AdapterError):
    """A module of this base to which the engine applies no adapters."""


class AdapterWithoutEffect(AdapterError):
    """Weights that multiply to zero: it would answer as the base."""


class PairIncomplete(AdapterError):
    """Lora_A without lora_B, or the reverse."""


class ShapeMismatch(AdapterError):
    """A tensor that does not fit its module."""


class ValueNotFinite(AdapterError):
    """NaN or infinity in the weights."""


class ValueTooLarge(AdapterError):
    """A weight so large that products with it may overflow."""


class TokensDiffer(AdapterError):
    """A tokenizer with tokens that the base's does not have."""


class ChatTemplateInvalid(AdapterError):
    """A chat template that cannot be read, or exceeds a limit."""


class AdapterAbsent(AdapterError):
    """The store has no adapter with that digest."""


class DigestMismatch(AdapterError):
    """An upload that is not the adapter it was announced as."""


class StoreDamaged(AdapterError):
    """A stored copy no longer matches its digest."""


class RoutingError(StackedError):
    """Which adapter a request means."""


class KeyMissing(RoutingError):
    """No model is named, and nothing is served without a name."""


class KeyUnknown(RoutingError):
    """No model is served under that name."""


class KeyTooLong(RoutingError):
    """An inference key of more than 32 characters."""


class KeyInvalid(RoutingError):
    """An inference key that a header, a path or a body would change."""


class KeyConflict(RoutingError):
    """Header and body, or two headers, name different models."""


class KeyRemoved(KeyUnknown):
    """Just removed: old requests finish, new ones are refused."""


class ModelQuarantined(RoutingError):
    """Its engine died again and again with it alone; it is served when it is loaded again."""


class DrainExpired(RoutingError):
    """Its model was replaced, and it outlasted the drain deadline."""


class KeyInUse(RoutingError):
    """An operation on a key or model that is already there."""


class RequestError(StackedError):
    """A request that is wrong before it reaches a model."""


class BodyInvalid(RequestError):
    """Not JSON, or not an object."""


class LimitExceeded(RequestError):
    """More than the server, or a credential, allows."""

    def __init__(self, sentence: str, limit: str = "", retry_after: float | None = None) -> None:
        """`limit`: its name, which the sentence has too.

        `retry_after`: seconds after which the same request may pass.
        """
        super().__init__(sentence)
        self.limit = limit
        self.retry_after = retry_after


class BodyTooLarge(LimitExceeded):
    """Over the payload limit."""


class BodyTooSlow(LimitExceeded):
    """A body that did not arrive in time."""


class ParameterOverLimit(LimitExceeded):
    """A parameter that asks for more than one request may."""


class TooManyRequests(LimitExceeded):
    """Requests, or tokens, of which there were too many before this one."""


class TimeExceeded(LimitExceeded):
    """A request that was not answered within its time."""


class EncodingUnsupported(RequestError):
    """A content coding that is not supported."""


class LengthRequired(RequestError):
    """An upload that does not say how long it is."""


class RangeInvalid(RequestError):
    """A part of an artifact that it does not have."""


class Unsupported(RequestError):
    """An operation of OCI that needs a service of OCI's, by name."""


class ParameterInvalid(RequestError):
    """A parameter of the wrong type or unknown."""


class ParameterUnsupported(RequestError):
    """A parameter that would change the answer, and that vLLM ignores."""


class GrammarTooCostly(RequestError):
    code = "GrammarTooCostly"


class NotAllowed(RequestError):
    """An administrative operation that this server does not allow."""


class NotAuthorizedOrNotFound(RequestError):
    """An endpoint that what is deployed here does not have, or not for this caller."""


class ExternalServerIncorrectState(RequestError):
    """A stream of a model that gives none."""


class NotAuthenticated(RequestError):
    """Not signed, or not by a known key."""


class InvalidatedRetryToken(RequestError):
    """A retry token that was used for something else."""


class FeedbackUnknown(RequestError):
    """Feedback for no answer or unit of an experiment that its caller may use."""


class FeedbackInvalid(RequestError):
    """Feedback under a name that is not taken."""


class RegistryError(StackedError):
    """The durable records."""


class RecordAbsent(RegistryError):
    """No record of that id."""


class RecordConflict(RegistryError):
    """An id or name that is taken, or something still needs the record."""


class RecordInvalid(RegistryError):
    """A value that the database cannot have, such as text with a zero byte in PostgreSQL."""


class RecordStale(RegistryError):
    """The record has changed since it was read."""


class IllegalMove(RegistryError):
    """A state that does not follow the one the record is in."""


class PageInvalid(RegistryError):
    """A limit, a sort or a page token that cannot be."""


class RegistryUnusable(RegistryError):
    """Disk full, locked, read-only, damaged, of a newer version, or out of reach."""


class DataDirInUse(RegistryError):
    """Another process serves from this data directory, or these records."""


class UpdateError(StackedError):
    """A change of the whole group."""


class UpdateInProgress(UpdateError):
    """Another one is under way."""


class UpdateNotLive(UpdateError):
    """The base or engine settings differ: not possible LIVE."""


class UpdateFailed(UpdateError):
    """Models that could not be staged or verified, each with its reason."""


class CanaryFailed(UpdateError):
    """An adapter that changes nothing or answers with NaN."""


class GateFailed(UpdateFailed):
    """Adapters that an evaluation set of their group refuses, each with its scores."""


class EvaluationError(StackedError):
    """Judging models by examples."""


class EvaluationInvalid(EvaluationError):
    """A set that cannot be scored: an unknown metric, or nothing that an answer can be."""


class EvaluationFailed(EvaluationError):
    """An example that got no answer or no score, or a budget that was used up."""


class EngineError(StackedError):
    """The engine itself."""


class EngineStartFailed(EngineError):
    """It did not come up; the log is named."""


class EngineDead(EngineError):
    """It is gone; another one is started."""

    retry_after = 5.0


class EngineSilent(EngineError):
    """It did not answer in time."""


class EngineLoadFailed(EngineError):
    """It refused an adapter that passed our checks."""

    def __init__(self, sentence: str, digest: str | None = None) -> None:
        """`digest`: of the adapter at fault, if it was one of several."""
        super().__init__(sentence)
        self.digest = digest


class ModelError(StackedError):
    """A model that fails at a request, whose next one may succeed."""


class ModelFailed(ModelError):
    """Its code or its runtime raised an error."""


class ModelTooSlow(ModelError):
    """It did not answer by its deadline."""


class ModelAnswerInvalid(ModelError):
    """An answer that JSON cannot carry, such as NaN, or one that is too large."""


class NotReady(EngineError):
    """Starting or stopping."""

    retry_after = 5.0
