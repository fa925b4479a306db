"""Models that are no adapters, and code that loads models: each once, checked, by its digest.

What loads a folder's files is found from the files, so that no record has to say it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import yaml

from stacked.core import Code, Digest, ModelFiles, Runtime
from stacked.errors import AdapterError, ArchiveInvalid, NotAllowed, ParameterInvalid
from stacked.store.archives import unpack_zip, zip_files
from stacked.store.files import copy_tree, real_path
from stacked.store.folders import FolderStore, content_digest
from stacked.store.limits import GIB, MIB, Limits
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
        self, root: Path, *, code: bool = False, pythons: Mapping[str, str] | None = None
    ) -> None:
        """Raises StoreUnusable."""
        super().__init__(root, "model", "models", MODEL_LIMITS)
        self._code = code
        self._pythons = pythons or {}
        self._known: dict[Digest, tuple[Runtime, Path | None, int]] = {}

    def add(
        self, source: Path, name: str, roots: Sequence[Path] | None = None
    ) -> tuple[Digest, int]:
        """Store a directory, a zip of one, or a file that is a model by its suffix; its size.

        `name`: the source's, or the name that a client gave it. Nothing outside of `roots` is
        read. Raises AdapterError, and NotAllowed for what runs code where that is off.
        """
        with self._making() as made:
            _read(source, name, made, roots)
            self._check(made, name)
            digest, total = content_digest(made, _FORMAT), _size(made)
            self._keep(made, digest)
        return digest, total

    def add_upload(self, archive: Path, announced: Digest) -> None:
        """Store the model in a zip that `outgoing_model` packed. Raises DigestMismatch too."""
        with self._making() as made:
            names = zip_files(archive, self.limits, "the upload")
            unpack_zip(archive, made, self.limits, "the upload", names, PurePosixPath())
            self._check(made, "the upload")
            check_announced(content_digest(made, _FORMAT), announced, "model")
            self._keep(made, announced)

    def holds(self, digest: Digest) -> bool:
        """Whether a model is present; it then waits to be registered, as an upload does."""
        with self._usable(), self._shelf.changing():
            return self._shelf.use(digest)

    def add_code(self, archive: Path, name: str) -> Code:
        """Store the code in a zip: a score.py, its modules, and its runtime.yaml.

        Raises NotAllowed, ArchiveInvalid, PathUnsafe, AdapterTooLarge, ParameterInvalid.
        """
        self._check_allowed(f"{name} has a {_SCORE}")
        with self._making() as made:
            unpack_folder(archive, made, _CODE_LIMITS, name)
            if not (made / _SCORE).is_file():
                raise ArchiveInvalid(
                    f"{name} has no {_SCORE}; pack it and {_ENVIRONMENT}, at the top or in one "
                    "folder"
                )
            python, digest = self._python(made), content_digest(made, _FORMAT)
            return Code(digest, self._keep(made, digest), python)

    def get(self, digest: Digest, code: Code | None = None) -> ModelFiles:
        """A stored model, loaded by its group's code, by its own, or by the runtime of its files.

        Raises AdapterAbsent, NotAllowed, ParameterInvalid.
        """
        folder = self.path(digest)
        if digest not in self._known:
            self._known[digest] = *runtime_of(folder), _size(folder)
        runtime, main, total = self._known[digest]
        if code is not None:
            return ModelFiles(digest, folder, total, Runtime.DATA).loaded_by(code)
        if runtime not in _WITHOUT_CODE:
            self._check_allowed(f"model content {digest} is {runtime.value}")
        own = Code(digest, folder, self._python(folder)) if runtime is Runtime.SCORE else None
        return ModelFiles(digest, folder, total, runtime, main, own)

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
        _read(real_path(Path(source).expanduser()), source, copy)
        return content_digest(copy, _FORMAT)

    return copied(source, read)


def _read(source: Path, name: str, into: Path, roots: Sequence[Path] | None = None) -> None:
    suffix = PurePath(name).suffix.lower()
    if source.is_dir() or suffix in SINGLE:
        copy_tree(source, into, MODEL_LIMITS, roots, f"model{suffix}")
    else:
        unpack_folder(source, into, MODEL_LIMITS, name)


def is_model(place: Path) -> bool:
    """Whether a file or directory is a model by its names."""
    marks = (_SCORE, _SAVED_MODEL)
    try:
        names = list(place.iterdir())
    except OSError:  # no directory, or none that may be read
        names = [] if place.is_dir() else [place]
    return any(each.name in marks or each.suffix.lower() in SINGLE for each in names)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


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
