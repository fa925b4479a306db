"""Where an adapter can come from: a directory, an archive, the Hub, http(s), an object store."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from stacked.errors import SourceNotFound, SourceRefused, SourceUnreachable
from stacked.logs import shown_url
from stacked.store import http, objects
from stacked.store.archives import unpack
from stacked.store.files import PATTERNS, WANTED, copy_adapter, real_path
from stacked.store.limits import Limits
from stacked.store.text import quoted

SCHEMES = (
    "a directory, a zip or tar of one, file://, http://, https://, hf://org/name or org/name, "
    "s3://, gs://, oci://, az://"
)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./%-]+)?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True)
class HubRef:
    """One folder of one revision of a repository on the Hub."""

    repository: str
    revision: str | None = None
    folder: str = ""


Download = Callable[[HubRef, Sequence[str]], Path]
"""Fetches files by pattern and returns the local directory of the repository."""


def fetch(
    source: str,
    target: Path,
    scratch: Path,
    limits: Limits,
    *,
    roots: Sequence[Path] | None = None,
    remote: Sequence[str] | None = None,
    download: Download | None = None,
) -> None:
    """Put private copies of the adapter's files into `target`.

    `scratch` is an empty directory for our use only. `roots`: resolved directories outside of which
    no local path is read; `remote`: addresses below which other machines may be read from, all of
    them if None. An existing local path wins over a Hub id; what looks like a path is never a Hub
    id. Raises an AdapterError about the source, the archive or the files.
    """
    if not source or "\0" in source:
        raise SourceRefused(f"{quoted(source)} is no source; use {SCHEMES}")
    if remote is not None and is_remote(source):
        _check_allowed(source, remote)
    scheme = _SCHEME.match(source)
    match scheme[1].lower() if scheme else "":
        case "http" | "https":
            archive = scratch / "download"
            http.download(source, archive, limits)
            unpack(archive, target, scratch, limits, shown_url(source))
        case "hf":
            _hub(parse_hub(source), target, limits, download or hub_download)
        case "file":
            _local(_file_path(source), target, scratch, limits, roots)
        case "":
            path = Path(os.path.expanduser(source))
            if _is_path(source) or os.path.lexists(path):
                _local(path, target, scratch, limits, roots)
            else:
                _hub(parse_hub(source), target, limits, download or hub_download)
        case store if store in objects.LIBRARIES:
            found = objects.download(source, scratch / "objects", limits, PATTERNS)
            if found.is_dir():
                copy_adapter(found, target, limits)
            else:
                unpack(found, target, scratch, limits, shown_url(source))
        case other:
            raise SourceRefused(f"{other}:// is not a source that works; use {SCHEMES}")


def is_remote(source: str) -> bool:
    """Whether `fetch` would read this source from another machine."""
    scheme = _SCHEME.match(source)
    if scheme:
        return scheme[1].lower() != "file"
    return bool(source) and not (_is_path(source) or os.path.lexists(os.path.expanduser(source)))


def _check_allowed(source: str, allowed: Sequence[str]) -> None:
    """Raises SourceRefused for a source of another machine that is below none of these."""
    scheme, there, rest = source.partition("://")
    address = f"{scheme.lower()}://{rest}" if there else f"hf://{source}"
    if any(f"{address}/".startswith(f"{place.rstrip('/')}/") for place in allowed):
        return
    if objects.scheme_of(source) is None:
        raise SourceRefused(
            f"{shown_url(source)}: no such path here, and adapters from other machines are off; "
            "set server.remote_adapters: true to allow them"
        )
    raise SourceRefused(
        f"{shown_url(source)} may not be read for callers; list it, or what it is below, in "
        "server.remote_adapters"
    )


def parse_hub(source: str) -> HubRef:
    """`org/name[@revision]`, or `hf://org/name[@revision][/folder]`; a slash in a revision is %2F.

    Raises SourceNotFound if a bare word is neither a path nor such an id, SourceRefused for a
    malformed hf:// address.
    """
    bare = source.removeprefix("hf://")
    organisation, _, rest = bare.partition("/")
    if bare == source:
        name, folder = rest, ""
    else:
        name, _, folder = rest.partition("/")
    name, at, revision = name.partition("@")
    parts = folder.rstrip("/").split("/") if folder else []
    well_formed = _HUB_ID.fullmatch(f"{organisation}/{name}") and (revision or not at)
    if not well_formed or any(part in ("", ".", "..") for part in parts):
        if bare == source:
            raise SourceNotFound(
                f"{quoted(source)} is neither an existing path nor a Hub id (org/name)"
            )
        raise SourceRefused(
            f"{quoted(source)} is not a Hub address; expected hf://org/name[@revision][/folder]"
        )
    return HubRef(f"{organisation}/{name}", unquote(revision) or None, "/".join(parts))


def hub_download(ref: HubRef, patterns: Sequence[str]) -> Path:
    """Fetch through `huggingface_hub`, with its cache, token and offline switch."""
    # Imported here: it takes half a second, and most sources do not need it.
    from huggingface_hub import errors, snapshot_download

    shown = ref.repository + (f"@{ref.revision}" if ref.revision else "")
    try:
        return Path(
            snapshot_download(
                ref.repository, revision=ref.revision, allow_patterns=list(patterns), max_workers=2
            )
        )
    except errors.GatedRepoError as error:
        raise SourceUnreachable(
            f"Hub repository {shown} is gated; accept its terms and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceNotFound(
            f"the Hub has no repository {shown}, or it is private; check the name, or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceNotFound(
            f"Hub repository {ref.repository} has no revision {quoted(ref.revision or '')}"
        ) from error
    except errors.HFValidationError as error:
        raise SourceRefused(f"{quoted(shown)} is not a Hub id: {error}") from error
    except errors.LocalEntryNotFoundError as error:
        raise SourceUnreachable(
            f"{shown} is not in the local Hub cache, and the Hub was not reached (no network, or "
            "HF_HUB_OFFLINE is set); fetch it where there is a network, or give a directory"
        ) from error
    # Each version of the library raises its own HTTP client's errors; they mean the same.
    except Exception as error:
        raise SourceUnreachable(
            f"Hub repository {shown} could not be fetched "
            f"({type(error).__name__}: {str(error)[:200]}); try again, or give a directory"
        ) from error


def _hub(ref: HubRef, target: Path, limits: Limits, download: Download) -> None:
    folder = f"{ref.folder}/" if ref.folder else ""
    snapshot = download(ref, [folder + name for name in PATTERNS])
    directory = snapshot / ref.folder
    if not directory.is_dir():
        raise SourceNotFound(
            f"Hub repository {ref.repository} has no {' or '.join(WANTED)} in folder "
            f"{quoted(ref.folder or '/')}"
        )
    copy_adapter(directory, target, limits)


def _is_path(source: str) -> bool:
    return source[0] in "./~" or source.count("/") > 1


def _file_path(source: str) -> Path:
    parts = urlsplit(source)
    if parts.netloc not in ("", "localhost"):
        raise SourceRefused(
            f"{quoted(source)} names a host; a file:// address is file:///absolute/path"
        )
    path = unquote(parts.path)
    if "\0" in path or not path.startswith("/"):
        raise SourceRefused(f"{quoted(source)} is not of the form file:///absolute/path")
    return Path(path)


def _local(
    path: Path, target: Path, scratch: Path, limits: Limits, roots: Sequence[Path] | None
) -> None:
    """A directory or an archive on this machine; nothing outside the roots is accessed."""
    real = real_path(path)
    try:
        if roots is not None and not any(real.is_relative_to(root) for root in roots):
            allowed = ", ".join(map(str, roots)) or "none"
            raise SourceRefused(
                f"{path} is outside the directories that adapters may be loaded from ({allowed})"
            )
        if real.is_dir():
            copy_adapter(real, target, limits, roots)
        elif real.is_file():
            if real.suffix == ".safetensors":
                raise SourceRefused(
                    f"{path} is the weights alone; give the directory that also has its config"
                )
            unpack(real, target, scratch, limits, str(path))
        elif os.path.lexists(real):
            raise SourceRefused(f"{path} is neither a directory nor a file")
        else:
            raise SourceNotFound(f"{path} does not exist; give an adapter's directory or archive")
    except PermissionError as error:
        raise SourceRefused(f"{path} cannot be read: {error}") from error
