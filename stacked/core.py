"""The nouns of Stacked: content digest, adapter, model files, member, model group.

Everything here is frozen and pure.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NewType, Protocol
from urllib.parse import quote, unquote

from stacked.errors import GroupInvalid, KeyInvalid, KeyTooLong

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hex digits, over what makes a content what it is."""

ModelId = NewType("ModelId", str)
"""An OCID. Opaque, except that a digest-derived one carries the digest."""

# Limits of OCI's stacked deployments.
VERSIONED = {"stacked-retention": "versions"}
"""The freeform tag of groups and models that come and go as versions of one another, such as those
of a file: without it, a record stays until somebody deletes it."""

MAX_KEY_LENGTH = 32
# Shares beyond these would be all or nothing.
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0
MAX_MEMBERS = 500

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PERCENT_CODED = re.compile(r"%[0-9A-Fa-f]{2}")
_ASCII = bytes(range(0x20, 0x7F)).decode()
_MODEL_ID = re.compile(r"ocid1\.[a-z0-9]+\.[A-Za-z0-9._-]+")


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def check_digest(text: str) -> Digest:
    """Return `text` as a digest, or raise ValueError."""
    if not is_digest(text):
        raise ValueError(f"not a digest (sha256: and 64 hex digits): {text!r}")
    return Digest(text)


def short(digest: Digest) -> str:
    """The first 12 hex digits: enough to display, never used as an identity."""
    return digest.removeprefix("sha256:")[:12]


def model_id_of(digest: Digest) -> ModelId:
    """The model id of a content without one: the same content has the same id."""
    return ModelId(f"ocid1.datasciencemodel.oc1..{digest.removeprefix('sha256:')}")


def check_model_id(text: str) -> ModelId:
    """Return `text` as a model id (an OCID), or raise ValueError."""
    if len(text) > 255 or not _MODEL_ID.fullmatch(text):
        raise ValueError(f"not an OCID (ocid1.<type>.<realm>.…): {text[:80]!r}")
    return ModelId(text)


def check_key(text: str) -> str:
    """Return `text` if it may be an inference key, otherwise raise KeyTooLong or KeyInvalid.

    At most 32 characters (OCI's limit) of any script that a header, a URL path, a JSON body and a
    metric label can all carry unchanged.
    A key may not look like an OCID: it would be ambiguous with another member's model id.
    """
    if len(text) > MAX_KEY_LENGTH:
        raise KeyTooLong(
            f"inference key {text[:MAX_KEY_LENGTH]!r}… has {len(text)} characters; "
            f"at most {MAX_KEY_LENGTH} are allowed"
        )
    if fault := _fault_of_key(text):
        raise KeyInvalid(f"inference key {text!r} {fault}; choose another key")
    return text


def _fault_of_key(text: str) -> str | None:
    if not text or text != text.strip():
        return "is empty, or begins or ends with a space, which headers lose"
    if not text.isprintable():
        return "has a control, formatting or line character, or a space other than ' '"
    if _PERCENT_CODED.search(text):
        return "has a % and two hex digits, which a header or a path would decode"
    if not {"", ".", ".."}.isdisjoint(text.split("/")):
        return "has an empty part, . or .. between its slashes, which paths lose"
    if text.startswith("ocid1."):
        return "looks like an OCID"
    if not text.isascii() and name_from_bytes(_in_latin1(text)) not in ("", text):
        return "reads as another key where it is sent in Latin-1"
    return None


def name_from_bytes(raw: bytes) -> str:
    """The key or model id in a header or a path: percent-encoded, UTF-8 or Latin-1."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return unquote(text)


def header_form(name: str) -> str:
    """A key as a header carries it: unchanged if ASCII, otherwise percent-encoded UTF-8."""
    return quote(name, safe=_ASCII)


def _in_latin1(text: str) -> bytes:
    return text.encode("latin-1") if max(text) < "\u0100" else b""


@dataclass(frozen=True, slots=True)
class Content:
    """What a member is made of: files that passed every check and are immutable in a store.

    `digest` identifies what is served, `bytes` is the size of its weights on disk.
    """

    digest: Digest
    path: Path
    bytes: int

    @property
    def stored(self) -> frozenset[Digest]:
        """What must stay in the stores while it is used."""
        return frozenset({self.digest})

    def on_cards(self, cards: tuple[int, ...]) -> Content:
        """The same, computed by these GPUs alone; () for all."""
        return self  # an adapter is on all of them, and its requests go to some


@dataclass(frozen=True, slots=True)
class Adapter(Content):
    """A LoRA adapter. `rank` is the largest rank of any of its modules."""

    rank: int
    target_modules: tuple[str, ...]
    base: str = ""
    """The base's name in the adapter's own config: displayed, never relied on."""

    @staticmethod
    def of(content: Content) -> Adapter:
        """A content of a group whose members are adapters."""
        assert isinstance(content, Adapter), "the members of a base are adapters"
        return content


class Runtime(enum.StrEnum):
    """What loads the files of a model that is no adapter."""

    ONNX = "onnx"
    SAVED_MODEL = "savedmodel"
    TORCH = "torch"  # TorchScript and exported programs
    SCORE = "score"  # its own score.py
    DATA = "data"  # the score.py of its group


@dataclass(frozen=True, slots=True)
class Code:
    """A folder with a score.py, and the Python that runs it; "" is the server's own."""

    digest: Digest
    path: Path
    python: str = ""


@dataclass(frozen=True, slots=True)
class ModelFiles(Content):
    """A model that is no adapter: its files, and the code that loads them if they need any."""

    runtime: Runtime
    main: Path | None = None
    """The file that is the model; None where a score.py loads the folder."""
    code: Code | None = None
    files: Digest | None = None
    """The digest of the files alone, where `digest` is that of files and code, or of cards."""
    cards: tuple[int, ...] = ()
    """The GPUs that its processes see, by their numbers here; () for all."""

    @property
    def stored(self) -> frozenset[Digest]:
        """The files and the code, as each is stored by itself."""
        code = {self.code.digest} if self.code is not None else set()
        return frozenset({self.files or self.digest} | code)

    def loaded_by(self, code: Code) -> ModelFiles:
        """The same files loaded by this code: another content with every other code."""
        both = hashlib.sha256(f"{self.digest} {code.digest}".encode()).hexdigest()
        digest, runtime = Digest(f"sha256:{both}"), Runtime.DATA
        return replace(
            self, digest=digest, runtime=runtime, main=None, code=code, files=self.digest
        )

    def on_cards(self, cards: tuple[int, ...]) -> ModelFiles:
        """See `Content.on_cards`: another content, as it is in other processes."""
        if not cards:
            return self
        both = hashlib.sha256(f"{self.digest} on {cards}".encode()).hexdigest()
        files = self.files or self.digest
        return replace(self, digest=Digest(f"sha256:{both}"), files=files, cards=cards)


class Handle(Protocol):
    """What an engine returns for content that it holds. `number` is used once."""

    @property
    def digest(self) -> Digest: ...
    @property
    def name(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def stored(self) -> frozenset[Digest]:
        """See `Content.stored`."""


@dataclass(frozen=True, slots=True)
class Member:
    """One model of a group: a model id, its content, and a key."""

    model_id: ModelId
    content: Content
    key: str | None = None
    weight: float = 1.0
    """Its share of the engine beside the other keys of the same caller."""

    @property
    def label(self) -> str:
        """The member's name in answers, logs and metrics: its key, otherwise its model id."""
        return self.key or self.model_id


@dataclass(frozen=True, slots=True)
class Base:
    """The base model of a group: what the engine loads and how callers name it."""

    model_id: ModelId
    key: str
    path: str
    """The local directory that the engine loads."""
    digest: str = ""
    """Identifies the base; see `stacked.service`. Not a hash of the weights."""


@dataclass(frozen=True, slots=True)
class ModelGroup:
    """An immutable group: one base and its fine-tunes, or models without one. Raises GroupInvalid.

    Two keys may name one model; one key names one model. A member may have no key: it is then
    reached only by its model id.
    """

    name: str
    base: Base | None
    members: tuple[Member, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    kind: str = "STACKED"

    def __post_init__(self) -> None:
        if len(self.members) > MAX_MEMBERS:
            raise GroupInvalid(
                f"group {self.name!r} has {len(self.members)} members; "
                f"at most {MAX_MEMBERS} are allowed"
            )
        seen = {self.base.key: "the base"} if self.base else {}
        digests: dict[ModelId, Digest] = {}
        for member in self.members:
            if self.base and member.model_id == self.base.model_id:
                raise GroupInvalid(f"model id {member.model_id} is the base's; give it another id")
            other = digests.setdefault(member.model_id, member.content.digest)
            if other != member.content.digest:
                raise GroupInvalid(
                    f"model id {member.model_id} names two different contents "
                    f"({short(other)}, {short(member.content.digest)})"
                )
            if member.key is None:
                continue
            if member.key in seen:
                raise GroupInvalid(
                    f"inference key {member.key!r} is used twice in group {self.name!r} "
                    f"({seen[member.key]} and {member.model_id}); keys are unique in a group"
                )
            seen[member.key] = member.model_id

    @property
    def stored(self) -> frozenset[str]:
        """What must stay in the stores while it is served, the base included."""
        base = {self.base.digest} if self.base else set[str]()
        return frozenset(base).union(*(member.content.stored for member in self.members))

    def contents(self) -> dict[Digest, Content]:
        """The distinct contents of the group, by digest, in order of first appearance."""
        return {member.content.digest: member.content for member in self.members}

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)
