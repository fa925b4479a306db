"""The module tree of a base model, read from the headers of its checkpoint and its config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stacked.errors import BaseNotFound, WeightsInvalid
from stacked.store.adaptable import Adaptable, Engine, Shape
from stacked.store.limits import MIB, Limits
from stacked.store.tensors import Tensor, read_header

EMBEDDING_NAMES = frozenset(
    {"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "embeddings"}
)
"""Names of token embeddings: a checkpoint does not say what kind a layer is."""

# Only in these types is the stored shape the module's; others pack several values into one.
_PLAIN = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
# Names in quantised checkpoints of the packed weight of a linear module (GPTQ and AWQ,
# compressed-tensors, HQQ).
_PACKED = ("qweight", "weight_packed", "W_q")
# safetensors itself reads headers of up to 100 MB.
_LIMITS = Limits(max_header_bytes=100 * MIB)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_TOWERS = ("vision_config", "audio_config", "vit_config", "speech_config")


@dataclass(frozen=True, slots=True)
class BaseModules:
    """What can be adapted in one base model.

    `modules` maps a module's name, as the checkpoint spells it, to (out_features, in_features), or
    to (num_embeddings, dim) for the names in `embeddings`. None: the module is there but its shape
    is unknown (quantised). Norms and biases are not in it.
    """

    name: str
    modules: Mapping[str, Shape | None]
    architecture: str = ""
    vocab_size: int | None = None
    layers: int | None = None
    embeddings: frozenset[str] = field(default_factory=frozenset)
    language_prefix: str = ""
    """The prefix of the language model's names if the base has other towers, otherwise empty."""
    engine: Engine | None = None
    """Finds out what adapters are applied to; without it, only the checkpoint's names count."""
    directory: Path | None = field(default=None, compare=False)
    """The checkpoint's directory, if it has one."""

    @classmethod
    def read(cls, directory: Path) -> BaseModules:
        """Read a local model directory: config.json and safetensors headers, no weights.

        Raises BaseNotFound if the directory holds no such model.
        """
        config = _read_json(directory / "config.json")
        text = _text_config(config)
        layers = _integer(text, "num_hidden_layers", "n_layer", "num_layers")
        modules = _modules((tensor for _, tensor in checkpoint(directory).values()), layers)
        embeddings = frozenset(
            name for name in modules if name.rpartition(".")[2] in EMBEDDING_NAMES
        )
        has_towers = any(isinstance(config.get(key), dict) for key in _TOWERS)
        prefix = _language_prefix(modules, embeddings, text) if has_towers else ""
        _add_tied_head(modules, embeddings, prefix)
        architectures = config.get("architectures") or [""]
        return cls(
            name=directory.name,
            modules=modules,
            architecture=str(architectures[0]),
            vocab_size=_integer(text, "vocab_size"),
            layers=layers,
            embeddings=embeddings,
            language_prefix=prefix,
            directory=directory,
        )

    def adaptable(self, modules: Iterable[str]) -> Adaptable | None:
        """What the engine applies adapters to, as far as these modules need it.

        The first time takes as long as importing vLLM, so it is only done where a checkpoint does
        not give the answer: names that differ from its own only in their prefix, and modules
        outside its numbered layers, which some of vLLM's classes adapt. All others are checked
        against a running engine. Raises BaseUnsupported.
        """
        known = self.engine.known() if self.engine is not None else None
        if self.engine is None or known is not None:
            return known
        outside = any(name in self.modules and not _LAYER.search(name) for name in modules)
        unknown = {_tail(name) for name in modules if name not in self.modules}
        if outside or (unknown and unknown <= {_tail(name) for name in self.modules}):
            return self.engine.ask()
        return None

    def in_language_model(self, module: str) -> bool:
        """Whether the module belongs to the part that adapters are applied to."""
        last = module.rpartition(".")[2]
        return last == "lm_head" or module.startswith(self.language_prefix)

    def __str__(self) -> str:
        return f"{self.name} ({self.architecture})" if self.architecture else self.name


def _tail(module: str) -> str:
    """The part of a module's name that all wrappers share: from its list of layers on."""
    found = _LAYER.search(module)
    return module[found.start() :].lstrip(".") if found else module.rpartition(".")[2]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise BaseNotFound(
            f"{path}: cannot be read ({error.strerror or error}); "
            "the base must be a local model directory with config.json and safetensors weights"
        ) from error
    except ValueError as error:
        raise BaseNotFound(f"{path}: not valid JSON ({error}); fetch the model again") from error
    if not isinstance(value, dict):
        raise BaseNotFound(f"{path}: expected a JSON object; fetch the model again")
    return value


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the language model, which multimodal configs nest."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), dict):
            return {**config, **config[key]}
    return config


def _integer(config: dict[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def checkpoint(directory: Path) -> dict[str, tuple[Path, Tensor]]:
    """Every tensor and its file, from the files in the index or else in the directory.

    Raises BaseNotFound.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise BaseNotFound(f"{index}: has no weight_map; fetch the model again")
        files = sorted({directory / str(shard) for shard in shards.values()})
    else:
        files = sorted(
            path
            for path in directory.glob("*.safetensors")
            # `consolidated` is a second copy under other names; adapters may be next to a base.
            if not path.name.startswith(("consolidated", "adapter_model"))
        )
    if not files:
        raise BaseNotFound(
            f"{directory} has no *.safetensors; the modules of a base are read from there. "
            "Convert the model (`stacked prepare`) or fetch its safetensors version"
        )
    tensors: dict[str, tuple[Path, Tensor]] = {}
    for file in files:
        try:
            tensors.update((name, (file, row)) for name, row in read_header(file, _LIMITS).items())
        except (OSError, WeightsInvalid) as error:
            raise BaseNotFound(f"{file}: {error}") from error
    return tensors


def _modules(tensors: Iterable[Tensor], layers: int | None) -> dict[str, Shape | None]:
    modules: dict[str, Shape | None] = {}
    for tensor in tensors:
        module, _, parameter = tensor.name.rpartition(".")
        if parameter in _PACKED:
            modules[module] = None
        elif parameter == "weight" and len(tensor.shape) == 2:
            rows, columns = tensor.shape
            modules[module] = (rows, columns) if tensor.dtype in _PLAIN else None
    return {name: shape for name, shape in modules.items() if _is_served(name, layers)}


def _is_served(module: str, layers: int | None) -> bool:
    """Without the extra layers for multi-token prediction, whose adapters vLLM ignores."""
    if module.startswith("mtp.") or ".mtp." in module:
        return False
    found = _LAYER.search(module)
    return layers is None or found is None or int(found[1]) < layers


def _language_prefix(
    modules: Mapping[str, Shape | None], embeddings: frozenset[str], text: dict[str, Any]
) -> str:
    """`model.language_model.` from `model.language_model.embed_tokens`.

    Towers may have embeddings of their own; the language model's has a row per token.
    """
    vocabulary = _integer(text, "vocab_size")
    for name in sorted(embeddings):
        shape = modules[name]
        if shape is not None and shape[0] == vocabulary:
            return name[: len(name) - len(name.rpartition(".")[2])]
    return ""


def _add_tied_head(
    modules: dict[str, Shape | None], embeddings: frozenset[str], language_prefix: str
) -> None:
    """A checkpoint without an output layer ties it to the embedding: same shape, both adaptable."""
    if any(name.rpartition(".")[2] == "lm_head" for name in modules):
        return
    for name in sorted(embeddings):
        if name.startswith(language_prefix):
            wrapped = name.startswith("language_model.")
            modules["language_model.lm_head" if wrapped else "lm_head"] = modules[name]
            return
