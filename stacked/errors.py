"""Every way Stacked can fail: one class per cause, each with a stable code and a message.

    StackedError
    ├── ConfigError
    │   ├── ConfigInvalid          the file or environment says something impossible
    │   ├── EngineOptionInvalid    vLLM has no such option, or not with such a value
    │   └── GroupInvalid           keys or ids of a group clash
    ├── SetupError
    │   ├── EngineNotInstalled     no vLLM here, or one outside the supported range
    │   ├── BaseNotFound           neither a directory nor a Hub id nor a known name
    │   ├── BaseUnsupported        a base that this vLLM cannot build, or not with adapters
    │   ├── PrepareFailed          a base could not be fetched or converted
    │   ├── StoreUnusable          the adapter store cannot be written: disk full, no permission
    │   └── KeyFileInvalid         a signing key cannot be made, found or removed as asked
    ├── PlanError
    │   └── GroupImpossible        the group cannot fit this machine; the arithmetic is shown
    ├── AdapterError               an adapter that is refused before it reaches the engine
    │   ├── SourceNotFound         nothing exists where the source points
    │   ├── SourceRefused          a scheme or place that may not be read
    │   ├── SourceUnreachable      the network or a server said no
    │   ├── ArchiveInvalid         not a zip or tar that can be read
    │   ├── PathUnsafe             a link, an absolute or `..` path that leads out
    │   ├── AdapterTooLarge        over the size, count or ratio limit
    │   ├── FileMissing            adapter_config.json or the weights are not there
    │   ├── PickleRefused          weights as a pickle, which can run code
    │   ├── AdapterConfigInvalid   adapter_config.json is not what PEFT writes
    │   ├── AdapterUnsupported     DoRA and others that this engine cannot serve, by name
    │   ├── RankRefused            a rank that vLLM or this engine does not support
    │   ├── WeightsInvalid         not a readable safetensors file of floats, or cut short
    │   ├── ModuleUnknown          a tensor for a module that this base does not have
    │   ├── ModuleUnapplied        a module of this base to which the engine applies no adapters
    │   ├── AdapterWithoutEffect   weights that multiply to zero: it would answer as the base
    │   ├── PairIncomplete         lora_A without lora_B, or the reverse
    │   ├── ShapeMismatch          a tensor that does not fit its module
    │   ├── ValueNotFinite         NaN or infinity in the weights
    │   ├── TokensDiffer           a tokenizer with tokens that the base's does not have
    │   ├── ChatTemplateInvalid    a chat template that cannot be read, or exceeds a limit
    │   ├── AdapterAbsent          the store has no adapter with that digest
    │   ├── DigestMismatch         an upload that is not the adapter it was announced as
    │   └── StoreDamaged           a stored copy no longer matches its digest
    ├── RoutingError               which adapter a request means
    │   ├── KeyTooLong, KeyInvalid
    │   ├── KeyMissing             no model is named, and nothing is served without a name
    │   ├── KeyUnknown
    │   │   └── KeyRemoved         just removed: old requests finish, new ones are refused
    │   ├── KeyConflict            header and body, or two headers, name different models
    │   ├── DrainExpired           its model was replaced, and it outlasted the drain deadline
    │   └── KeyInUse               an operation on a key or model that is already there
    ├── RequestError               a request that is wrong before it reaches a model
    │   ├── BodyInvalid            not JSON, or not an object
    │   ├── BodyTooLarge           over the payload limit
    │   ├── EncodingUnsupported    a content coding that is not supported
    │   ├── LengthRequired         an upload that does not say how long it is
    │   ├── RangeInvalid           a part of an artifact that it does not have
    │   ├── Unsupported            an operation of OCI that needs a service of OCI's, by name
    │   ├── ParameterInvalid       a parameter of the wrong type or unknown
    │   ├── ParameterUnsupported   a parameter that would change the answer, and that vLLM ignores
    │   ├── NotAllowed             an administrative operation that this server does not allow
    │   ├── NotAuthenticated       not signed, or not by a known key
    │   └── InvalidatedRetryToken  a retry token that was used for something else
    ├── RegistryError              the durable records
    │   ├── RecordAbsent           no record of that id
    │   ├── RecordConflict         an id or name that is taken, or something still needs the record
    │   ├── RecordStale            the record has changed since it was read
    │   ├── IllegalMove            a state that does not follow the one the record is in
    │   ├── PageInvalid            a limit, a sort or a page token that cannot be
    │   ├── RegistryUnusable       disk full, locked, read-only, damaged, or of a newer version
    │   └── DataDirInUse           another process serves from this data directory
    ├── UpdateError                a change of the whole group
    │   ├── UpdateInProgress       another one is under way
    │   ├── UpdateNotLive          the base or engine settings differ: not possible LIVE
    │   ├── UpdateFailed           models that could not be staged or verified, each with its reason
    │   └── CanaryFailed           an adapter that changes nothing or answers with NaN
    └── EngineError                the engine itself
        ├── EngineStartFailed      it did not come up; the log is named
        ├── EngineDead             it is gone
        ├── EngineSilent           it did not answer in time
        ├── EngineLoadFailed       it refused an adapter that passed our checks
        └── NotReady               starting or stopping

No class here knows HTTP: status codes are in one table in `stacked/api/errors.py`.
"""

from __future__ import annotations

from typing import ClassVar


class StackedError(Exception):
    """Base of all errors. `str(error)` is a message that says what to do."""

    code: ClassVar[str] = "InternalError"

    @classmethod
    def tree(cls) -> list[type[StackedError]]:
        """This class and every class below it."""
        return [cls, *(sub for child in cls.__subclasses__() for sub in child.tree())]


class ConfigError(StackedError):
    code = "ConfigError"


class ConfigInvalid(ConfigError):
    code = "ConfigInvalid"


class EngineOptionInvalid(ConfigError):
    code = "EngineOptionInvalid"


class GroupInvalid(ConfigError):
    code = "GroupInvalid"


class SetupError(StackedError):
    code = "SetupError"


class EngineNotInstalled(SetupError):
    code = "EngineNotInstalled"


class BaseNotFound(SetupError):
    code = "BaseNotFound"


class BaseUnsupported(SetupError):
    code = "BaseUnsupported"


class PrepareFailed(SetupError):
    code = "PrepareFailed"


class StoreUnusable(SetupError):
    code = "StoreUnusable"


class KeyFileInvalid(SetupError):
    code = "KeyFileInvalid"


class PlanError(StackedError):
    code = "PlanError"


class GroupImpossible(PlanError):
    code = "GroupImpossible"


class AdapterError(StackedError):
    code = "AdapterError"


class SourceNotFound(AdapterError):
    code = "SourceNotFound"


class SourceRefused(AdapterError):
    code = "SourceRefused"


class SourceUnreachable(AdapterError):
    code = "SourceUnreachable"


class ArchiveInvalid(AdapterError):
    code = "ArchiveInvalid"


class PathUnsafe(AdapterError):
    code = "PathUnsafe"


class AdapterTooLarge(AdapterError):
    code = "AdapterTooLarge"


class FileMissing(AdapterError):
    code = "FileMissing"


class PickleRefused(AdapterError):
    code = "PickleRefused"


class AdapterConfigInvalid(AdapterError):
    code = "AdapterConfigInvalid"


class AdapterUnsupported(AdapterError):
    code = "AdapterUnsupported"


class RankRefused(AdapterError):
    code = "RankRefused"


class WeightsInvalid(AdapterError):
    code = "WeightsInvalid"


class ModuleUnknown(AdapterError):
    code = "ModuleUnknown"


class ModuleUnapplied(AdapterError):
    code = "ModuleUnapplied"


class AdapterWithoutEffect(AdapterError):
    code = "AdapterWithoutEffect"


class PairIncomplete(AdapterError):
    code = "PairIncomplete"


class ShapeMismatch(AdapterError):
    code = "ShapeMismatch"


class ValueNotFinite(AdapterError):
    code = "ValueNotFinite"


class TokensDiffer(AdapterError):
    code = "TokensDiffer"


class ChatTemplateInvalid(AdapterError):
    code = "ChatTemplateInvalid"


class AdapterAbsent(AdapterError):
    code = "AdapterAbsent"


class DigestMismatch(AdapterError):
    code = "DigestMismatch"


class StoreDamaged(AdapterError):
    code = "StoreDamaged"


class RoutingError(StackedError):
    code = "RoutingError"


class KeyMissing(RoutingError):
    code = "KeyMissing"


class KeyUnknown(RoutingError):
    code = "KeyUnknown"


class KeyTooLong(RoutingError):
    code = "KeyTooLong"


class KeyInvalid(RoutingError):
    code = "KeyInvalid"


class KeyConflict(RoutingError):
    code = "KeyConflict"


class KeyRemoved(KeyUnknown):
    code = "KeyRemoved"


class DrainExpired(RoutingError):
    code = "DrainExpired"


class KeyInUse(RoutingError):
    code = "KeyInUse"


class RequestError(StackedError):
    code = "RequestError"


class BodyInvalid(RequestError):
    code = "BodyInvalid"


class BodyTooLarge(RequestError):
    code = "BodyTooLarge"


class EncodingUnsupported(RequestError):
    code = "EncodingUnsupported"


class LengthRequired(RequestError):
    code = "LengthRequired"


class RangeInvalid(RequestError):
    code = "RangeInvalid"


class Unsupported(RequestError):
    code = "Unsupported"


class ParameterInvalid(RequestError):
    code = "ParameterInvalid"


class ParameterUnsupported(RequestError):
    code = "ParameterUnsupported"


class NotAllowed(RequestError):
    code = "NotAllowed"


class NotAuthenticated(RequestError):
    code = "NotAuthenticated"


class InvalidatedRetryToken(RequestError):
    code = "InvalidatedRetryToken"


class RegistryError(StackedError):
    code = "RegistryError"


class RecordAbsent(RegistryError):
    code = "RecordAbsent"


class RecordConflict(RegistryError):
    code = "RecordConflict"


class RecordStale(RegistryError):
    code = "RecordStale"


class IllegalMove(RegistryError):
    code = "IllegalMove"


class PageInvalid(RegistryError):
    code = "PageInvalid"


class RegistryUnusable(RegistryError):
    code = "RegistryUnusable"


class DataDirInUse(RegistryError):
    code = "DataDirInUse"


class UpdateError(StackedError):
    code = "UpdateError"


class UpdateInProgress(UpdateError):
    code = "UpdateInProgress"


class UpdateNotLive(UpdateError):
    code = "UpdateNotLive"


class UpdateFailed(UpdateError):
    code = "UpdateFailed"


class CanaryFailed(UpdateError):
    code = "CanaryFailed"


class EngineError(StackedError):
    code = "EngineError"


class EngineStartFailed(EngineError):
    code = "EngineStartFailed"


class EngineDead(EngineError):
    code = "EngineDead"


class EngineSilent(EngineError):
    code = "EngineSilent"


class EngineLoadFailed(EngineError):
    code = "EngineLoadFailed"

    def __init__(self, sentence: str, digest: str | None = None) -> None:
        """`digest`: of the adapter at fault, if it was one of several."""
        super().__init__(sentence)
        self.digest = digest


class NotReady(EngineError):
    code = "NotReady"
