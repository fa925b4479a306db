"""The directory of credentials: one file each, written atomically, for its owner's eyes only."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    StrictBool,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from stacked.callers import ANYONE, NOBODY, Allowance, Caller
from stacked.core import MAX_WEIGHT, MIN_WEIGHT
from stacked.errors import KeyFileInvalid
from stacked.keys.public import Principal, PublicKey, fingerprint, read_public
from stacked.keys.tokens import Secret

Text = Annotated[str, Field(min_length=1)]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MOST_BYTES = 64 * 1024  # of a file; one with the longest RSA key is far smaller


class Rights(BaseModel):
    """What a credential may do and how much. Nothing that is left out grants more than serving."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True
    )

    admin: StrictBool = False
    keys: Annotated[frozenset[Text], Field(min_length=1)] | None = None
    """The inference keys and model ids that it may use and learn of; None: all."""
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    concurrency: PositiveInt | None = None
    weight: Annotated[float, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)] = 1.0
    batch: StrictBool = False
    time_expires: AwareDatetime | None = None

    @model_validator(mode="after")
    def _is_clear(self) -> Self:
        if self.admin and self.keys is not None:
            raise ValueError("an admin credential cannot be held to some keys")
        return self

    def caller(self, name: str, user: str = "") -> Caller:
        """Whoever uses the credential of this name."""
        much = Allowance(self.requests_per_minute, self.tokens_per_minute, self.concurrency)
        return Caller(name, user, self.admin, self.keys, much, self.weight, self.batch)


class File(Rights):
    """A file of the directory: the rights, and the hashes of tokens or a public key."""

    time_created: AwareDatetime
    secrets: tuple[Secret, ...] = ()
    tenancy: str | None = None
    user: str | None = None
    fingerprint: str | None = None
    """For people; the key's own is computed."""
    public_key: str | None = None

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        signs = None not in (self.tenancy, self.user, self.public_key)
        if signs == bool(self.secrets):
            raise ValueError("expected secrets; or else tenancy, user and publicKey")
        return self

    def text(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class Credential:
    """One credential of the directory: a key that signs, or tokens. `name` is the file's."""

    name: str
    caller: Caller
    expires: datetime | None = None
    created: datetime | None = None
    public: PublicKey | None = None
    secrets: tuple[Secret, ...] = ()

    @classmethod
    def of(cls, name: str, file: File) -> Credential:
        """Raises ValueError for a key that cannot be one."""
        common = (file.time_expires, file.time_created)
        if file.public_key is None:
            return cls(name, file.caller(name), *common, secrets=file.secrets)
        key = read_public(file.public_key.encode())
        principal = Principal.parse(f"{file.tenancy}/{file.user}/{fingerprint(key)}")
        caller = file.caller(name, principal.user)
        return cls(name, caller, *common, public=PublicKey(principal, key))


Stamp = tuple[int, int, int]
"""Another one after every change of a file: its inode, time and size."""
Scan = Mapping[str, tuple[Stamp, Credential | str]]
"""The files of a directory by path: what each is, or why it is no credential."""


def keys_dir(data_dir: Path) -> Path:
    """The directory of the credentials, one file each."""
    return data_dir / "keys"


def scan(directory: Path, before: Scan) -> Scan:
    """Read a directory; of the files that are as `before`, nothing is read again.

    A missing directory is empty. Raises KeyFileInvalid if it cannot be read.
    """
    found = {}
    try:
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                if not entry.name.endswith(".json"):
                    continue
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    said = entry.stat()
                    stamp = (said.st_ino, said.st_mtime_ns, said.st_size)
                    known = before.get(entry.path)
                    same = known is not None and known[0] == stamp
                    found[entry.path] = known if known and same else (stamp, _read(entry.path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise KeyFileInvalid(f"{directory} cannot be read ({error.strerror})") from error
    return found


def sorted_out(scanned: Scan) -> tuple[list[Credential], list[str]]:
    """The credentials by name, and a message for each file that is none."""
    found = [each for _, each in scanned.values() if isinstance(each, Credential)]
    faults = [f"{path}: {each}" for path, (_, each) in scanned.items() if isinstance(each, str)]
    return found, faults


def read_directory(directory: Path) -> tuple[list[Credential], list[str]]:
    """See `scan` and `sorted_out`."""
    return sorted_out(scan(directory, {}))


def read_file(path: Path) -> File:
    """Raises FileNotFoundError, and ValueError for what is no file of a credential."""
    with path.open("rb") as file:
        return File.model_validate_json(file.read(_MOST_BYTES))


def _read(path: str) -> Credential | str:
    place = Path(path)
    try:
        return Credential.of(place.stem, read_file(place))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else first["msg"]
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        return str(error)


# -- writing --------------------------------------------------------------------------------


def check_name(name: str) -> str:
    """Raises KeyFileInvalid for what could be a path, or is a caller's name without a key."""
    if not _NAME.fullmatch(name) or name in (ANYONE.name, NOBODY.name):
        raise KeyFileInvalid(
            f"{name[:80]!r} is not a name for a key; use at most 64 letters, digits, _ and -, "
            f"beginning with a letter or digit, and neither {ANYONE.name} nor {NOBODY.name}"
        )
    return name


@contextlib.contextmanager
def writing(data_dir: Path) -> Iterator[None]:
    """Raises KeyFileInvalid where the block cannot write."""
    try:
        yield
    except OSError as error:
        raise KeyFileInvalid(
            f"keys cannot be written below {data_dir} ({error.strerror or error})"
        ) from error


def make_private(directory: Path) -> None:
    """Make a directory that only its owner can look into."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)


def write(path: Path, content: bytes) -> None:
    """Write atomically, readable only by the owner."""
    number, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # of mode 0600
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
