"""Models that are no adapters, and code that loads models: each once, checked, by its digest.

What loads a folder's files is found from the files, so that no record has to say it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import yaml

from stacked.core import Code, Digest, ModelFiles, Runtime
from stacked.errors import (
    AdapterAbsent,
    AdapterError,
    ArchiveInvalid,
    NotAllowed,
    ParameterInvalid,
    RecordConflict,
)
from stacked.store.archives import zip_files
from stacked.store.files import copy_tree, real_path
from stacked.store.folders import FolderStore, content_digest
from stacked.store.limits import GIB, MIB, Limits
from stacked.store.shared import SharedContents
from stacked.store.text import quoted
from stacked.store.uploads import Outgoing, check_announced, copied, unpack_folder

MODEL_LIMITS = Limits(max_bytes=64 * GIB, max_members=10_000)
_CODE_LIMITS = Limits(max_bytes=256 * MIB, max_members=2_000)
_RUNTIME_YAML_BYTES = 64 * 1024

_FORMAT = b"stacked model 1\n"
_SCORE, _ENVIRONMENT, _SAVED_MODEL = "score.py", "runtime.yaml", "saved_model.pb"
_TORCH = (".pt", ".pth", ".ts")
SINGLE = (".onnx", ".pt2", *_TORCH)
"""Files that may come alone: each is a whole model."""
_PICKLES = {*_TORCH, ".pkl", ".pickle", ".joblib", ".py"}
_KERAS = {".keras", ".h5", ".hdf5"}
_WITHOUT_CODE = (Runtime.ONNX, Runtime.SAVED_MODEL)


class ModelStore(FolderStore):
    """A directory of folders: models, and the code of groups.

    `code`: whether what runs code is accepted. `pythons`: interpreters, by the names that a
    `runtime.yaml` has of its environment.
    """

    def __init__(
        self,
        root: Path,
        *,
        code: bool = False,
        pythons: Mapping[str, str] | None = None,
        shared: SharedContents | None = None,
    ) -> None:
        """Raises StoreUnusable."""
        super().__init__(root, "model", MODEL_LIMITS, shared)
        self._code = code
        self._pythons = pythons or {}
        self._known: dict[Digest, ModelFiles] = {}

    def add(
        self,
        source: Path,
        name: str,
        roots: Sequence[Path] | None = None,
        announced: Digest | None = None,
    ) -> ModelFiles:
        """Store a directory, a zip of one, or a file that is a model by its suffix.

        `name`: the source's, or the name that a client gave it. Nothing outside of `roots` is
        read. Raises AdapterError, NotAllowed for what runs code where that is off, DigestMismatch
        for another model than the one that was `announced`.
        """
        with self._making() as made:
            top = _read(source, name, made, roots)
            self._check(top, name)
            digest = self._digest(top)
            check_announced(digest, announced or digest, "model")
            self._keep(top, digest)
        return self.read(digest)

    def find(self, digest: Digest) -> ModelFiles | None:
        """A model that is present, here or where contents are shared; it then waits to be
        registered, as an upload does."""
        with contextlib.suppress(AdapterAbsent):
            self.path(digest)
        with self._usable(), self._shelf.changing():
            there = self._shelf.use(digest)
        return self.read(digest) if there else None

    def add_code(self, archive: Path, name: str) -> Code:
        """Store the code in a zip: a score.py, its modules, and its runtime.yaml.

        Raises NotAllowed, ArchiveInvalid, PathUnsafe, AdapterTooLarge, ParameterInvalid.
        """
        self._check_allowed(f"{name} has a {_SCORE}")
        with self._making() as made:
            unpack_folder(archive, made, _CODE_LIMITS, name)
            top = _top(made)
            if not (top / _SCORE).is_file():
                raise ArchiveInvalid(
                    f"{name} has no {_SCORE}; pack it and {_ENVIRONMENT}, at the top or in one "
                    "folder"
                )
            python, digest = self._python(top), self._digest(top)
            return Code(digest, self._keep(top, digest), python)

    def get(self, digest: Digest, code: Code | None = None, name: str = "it") -> ModelFiles:
        """A stored model, loaded by its group's code, by its own, or by the runtime of its files.

        `name`: its name in messages. Raises AdapterAbsent, NotAllowed, ParameterInvalid, and
        RecordConflict for files that nothing loads.
        """
        files = self.read(digest)
        if code is not None:
            return files.loaded_by(code)
        if files.runtime not in _WITHOUT_CODE:
            self._check_allowed(f"model content {digest} is {files.runtime.value}")
        if files.runtime is Runtime.DATA:
            raise RecordConflict(
                f"{name} has no {_SCORE}, and no single file that a runtime loads (.onnx, "
                f"{_SAVED_MODEL}, TorchScript or .pt2); use another one that has"
            )
        if files.runtime is Runtime.SCORE:
            return replace(files, code=Code(digest, files.path, self._python(files.path)))
        return files

    def read(self, digest: Digest) -> ModelFiles:
        """A stored model, whatever loads it. Raises AdapterAbsent."""
        folder = self.path(digest)
        if digest not in self._known:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            self._known[digest] = ModelFiles(digest, folder, size, *runtime_of(folder))
        return self._known[digest]

    def _digest(self, made: Path) -> Digest:
        return content_digest(made, _FORMAT)

    def _check(self, made: Path, name: str) -> None:
        """Refuse what nothing here can load, and what runs code where that is off."""
        runtime, _ = runtime_of(made)
        suffixes = {path.suffix.lower() for path in made.rglob("*")}
        if runtime is Runtime.DATA and suffixes & _KERAS:
            raise ArchiveInvalid(
                f"{name} is in a format that Keras alone reads; export a SavedModel "
                f'(model.export("folder")), or add a {_SCORE} that loads it'
            )
        unknown = runtime is Runtime.DATA and not suffixes & _PICKLES
        if not suffixes or (unknown and not self._code):
            raise ArchiveInvalid(
                f"{name} is neither an adapter (adapter_config.json and adapter_model.safetensors) "
                "nor a base (config.json and *.safetensors) nor a model (one .onnx file, or a "
                f"{_SAVED_MODEL}); pack one of these, at the top or in one folder. Files for a "
                f"{_SCORE} need models.code: true"
            )
        if runtime not in _WITHOUT_CODE:
            self._check_allowed(f"{name} has a {_SCORE}, TorchScript, a .pt2 or pickles")

    def _check_allowed(self, what: str) -> None:
        if not self._code:
            raise NotAllowed(
                f"{what}, which runs the code of whoever made it, and that is off here; export "
                "the model to ONNX, or set models.code: true where a container is the sandbox"
            )

    def _python(self, folder: Path) -> str:
        """The interpreter that the folder's runtime.yaml names; "" for the server's own.

        Raises ParameterInvalid for an environment that is not configured here.
        """
        named = _environment(folder / _ENVIRONMENT)
        if named and named not in self._pythons:
            known = ", ".join(map(quoted, self._pythons)) or "none"
            raise ParameterInvalid(
                f"{_ENVIRONMENT}: environment {quoted(named)} is not here (known: {known}); map "
                "it to an interpreter in models.pythons, or leave it out for the server's own"
            )
        return self._pythons.get(named, "")


def outgoing_model(source: str) -> contextlib.AbstractContextManager[Outgoing]:
    """The same as `outgoing` for a model. Raises AdapterError, StoreUnusable."""

    def read(copy: Path, scratch: Path) -> Digest:
        top = _read(real_path(Path(source).expanduser()), source, copy)
        return content_digest(top, _FORMAT)

    return copied(source, read)


def _read(source: Path, name: str, into: Path, roots: Sequence[Path] | None = None) -> Path:
    """Copy or unpack a source; the folder that has its files."""
    suffix = PurePath(name).suffix.lower()
    if source.is_dir() or suffix in SINGLE:
        copy_tree(source, into, MODEL_LIMITS, roots, f"model{suffix}")
    else:
        unpack_folder(source, into, MODEL_LIMITS, name)
    return _top(into)


def _top(folder: Path) -> Path:
    """The one folder that all files of this one may be in, otherwise this one."""
    found = [*folder.iterdir()]
    return found[0] if len(found) == 1 and found[0].is_dir() else folder


def is_model(place: Path) -> bool:
    """Whether a file, or a directory by the names in it, is a model."""
    try:
        names = [*place.iterdir()] if place.is_dir() else [place]
    except OSError:  # it may not be read
        return False
    marks = (_SCORE, _SAVED_MODEL)
    return any(each.name in marks or each.suffix.lower() in SINGLE for each in names)


def runtime_of(folder: Path) -> tuple[Runtime, Path | None]:
    """What loads the files of a folder, and the one that it loads."""
    if (folder / _SCORE).is_file():
        return Runtime.SCORE, None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for runtime, found in (
        (Runtime.SAVED_MODEL, [path for path in files if path.name == _SAVED_MODEL]),
        (Runtime.ONNX, [path for path in files if path.suffix.lower() == ".onnx"]),
        (Runtime.TORCH, [path for path in files if _is_torch(path)]),
    ):
        one = [path for path in found if path.stem == "model"] or found
        if found:  # only a score.py can know which of several is meant
            return (runtime, one[0]) if len(one) == 1 else (Runtime.DATA, None)
    return Runtime.DATA, None


def _is_torch(path: Path) -> bool:
    """An exported program or TorchScript, which are zips; tensors alone are saved as such too."""
    if path.suffix.lower() in _TORCH:
        with contextlib.suppress(AdapterError):
            return any(each.name == "constants.pkl" for each in zip_files(path, MODEL_LIMITS, "it"))
    return path.suffix.lower() == ".pt2"


def _environment(file: Path) -> str:
    """The name of the environment in a runtime.yaml: its slug, otherwise its path, otherwise "".

    Raises ParameterInvalid for a file that is no such YAML.
    """
    if not file.is_file():
        return ""
    try:
        with file.open("rb") as reader:
            # All values are text, and there are no merge keys, which can multiply without end.
            tree: Any = yaml.load(reader.read(_RUNTIME_YAML_BYTES), yaml.BaseLoader)
        for part in ("MODEL_DEPLOYMENT", "INFERENCE_CONDA_ENV"):
            tree = (tree or {}).get(part) or {}
        return str(tree.get("INFERENCE_ENV_SLUG") or tree.get("INFERENCE_ENV_PATH") or "")
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise ParameterInvalid(
            f"{file.name}: expected MODEL_DEPLOYMENT.INFERENCE_CONDA_ENV.INFERENCE_ENV_SLUG "
            f"({str(error)[:200]})"
        ) from error
