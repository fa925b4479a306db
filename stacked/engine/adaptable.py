"""What vLLM's own class of a base applies adapters to, from a worker or from a probe of the class.

Importing it imports neither vLLM nor torch.

Relies on: ``LoRAModelManager.modules`` has every layer that was wrapped,
``.packed_modules`` the names by which adapters call the parts of a packed one,
``.packed_modules_mapping`` what its loader accepts for a packed one's last name; a wrapped
layer's ``lora_a_stacked`` and ``lora_b_stacked`` are one tensor per part,
[slots, 1, rank, in] and [slots, 1, out, rank], and an embedding's [slots, vocabulary, rank];
``hf_to_vllm_mapper`` renames (vllm/lora/worker_manager.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stacked.engine.support import require_build
from stacked.errors import BaseNotFound, BaseUnsupported
from stacked.store.adaptable import Adaptable, Renames, Shape
from stacked.store.disk import write_whole

# An answer depends on these of vLLM's options; others change sizes and speed.
_RELEVANT = (
    "enable_tower_connector_lora",
    "hf_overrides",
    "language_model_only",
    "lora_target_modules",
    "model_impl",
    "quantization",
    "revision",
    "trust_remote_code",
)
# Building the class takes about 15 s, and longer on a busy machine.
_SECONDS = 300.0

_MLA_REASON = (
    "vLLM computes multi-head latent attention from the base's weight of it alone, "
    "folded into the query and the output (vLLM issue 48974)"
)
_DOUBLED_REASON = "vLLM holds the layer in two places, and computes with the one without adapters"
_CONVOLUTION_REASON = "vLLM reads a convolution's base weight itself, bypassing the layer"


def describe(manager: Any) -> Adaptable:
    """What the manager has wrapped and its loader accepts. Runs in the process that has the model.

    Shapes are None if several processes share the model, as each has only a part.
    """
    from vllm.distributed import get_tensor_model_parallel_world_size

    whole = get_tensor_model_parallel_world_size() == 1
    model = manager.model
    latent = any(type(module).__name__ == "MLAAttention" for module in model.modules())
    doubled = _doubled(model, manager.modules)
    modules: dict[str, Shape | None] = {}
    passed_by: dict[str, str] = {}
    for name, layer in manager.modules.items():
        reason = _DOUBLED_REASON if name in doubled else _passed_by(name, layer, latent)
        for part, shape in _parts(manager, name, layer):
            if reason:
                passed_by[part] = reason
            else:
                modules[part] = shape if whole else None
    prefix = _text_prefix(manager)
    return Adaptable(type(model).__name__, modules, passed_by, _renames(model), prefix)


def together(workers: Sequence[Adaptable]) -> Adaptable:
    """What several workers together apply adapters to; each may have only some of the layers."""
    modules = {name: shape for each in workers for name, shape in each.modules.items()}
    passed_by = {name: reason for each in workers for name, reason in each.passed_by.items()}
    return replace(workers[0], modules=modules, passed_by=passed_by)


def _parts(manager: Any, name: str, layer: Any) -> Iterator[tuple[str, Shape | None]]:
    """The names by which adapters call a wrapped layer, with the shape of each."""
    packed = manager.packed_modules.get(name)
    if packed is None:
        mapped = manager.packed_modules_mapping.get(name.rpartition(".")[2])
        if mapped is None or name.rpartition(".")[2] in mapped:
            yield name, _shape(layer, 0)
        return  # else the loader lets in another name, which nothing is looked up by
    slices = len(layer.lora_a_stacked)
    for at, part in enumerate(packed):
        yield part, _shape(layer, at) if slices == len(packed) else None


def _shape(layer: Any, at: int) -> Shape | None:
    a, b = layer.lora_a_stacked, layer.lora_b_stacked
    if not isinstance(a, list | tuple):  # an embedding
        return int(a.shape[1]), int(b.shape[-2])
    if a[at].dim() != 4 or b[at].dim() != 4:  # experts
        return None
    return int(b[at].shape[-2]), int(a[at].shape[-1])


def _doubled(model: Any, wrapped: Mapping[str, Any]) -> set[str]:
    """Linear layers that another module also holds, unwrapped: only one place has the wrapper."""
    from vllm.model_executor.layers.linear import LinearBase

    inner = {
        id(layer.base_layer): (name, layer)
        for name, layer in wrapped.items()
        if isinstance(getattr(layer, "base_layer", None), LinearBase)
    }
    found = set()
    for owner in model.modules():
        for child in owner.children():
            name, layer = inner.get(id(child), ("", owner))
            if layer is not owner:
                found.add(name)
    return found


def _passed_by(name: str, layer: Any, latent: bool) -> str:
    """Why vLLM bypasses the wrapper of a layer; empty if it does not.

    `latent`: whether the model's attention is multi-head latent attention.
    """
    if latent and name.endswith(".kv_b_proj"):
        return _MLA_REASON
    weight = getattr(layer.base_layer, "weight", None)
    if weight is not None and weight.dim() == 3 and name.endswith(".conv1d"):
        return _CONVOLUTION_REASON
    return ""


def _text_prefix(manager: Any) -> str:
    """The prefix of a multimodal model's language model, if the loader accepts names without it.

    It does from vLLM 0.33 on, for the names that PEFT writes for the text-only class.
    """
    if not hasattr(manager, "_get_text_lora_names") or not getattr(manager, "supports_mm", False):
        return ""
    return str(manager.mm_mapping.language_model[0]).rstrip(".") + "."


def _renames(model: Any) -> Renames:
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return Renames()
    if hasattr(mapper, "get_rename_mapper"):
        mapper = mapper.get_rename_mapper()
    else:  # up to 0.28
        mapper = mapper.get_unstacked_mapper()
    return Renames(
        regex=tuple((old.pattern, old.flags, new) for old, new in _kept(mapper.orig_to_new_regex)),
        part=tuple(_kept(mapper.orig_to_new_substr)),
        prefix=tuple(_kept(mapper.orig_to_new_prefix)),
        suffix=tuple(_kept(mapper.orig_to_new_suffix)),
    )


def _kept(renames: Mapping[Any, str | None]) -> Iterator[tuple[Any, str]]:
    """Without the weights that vLLM skips, which an old mapper lists among its renames."""
    return ((old, new) for old, new in renames.items() if new is not None)


class Asking:
    """What one base's engine applies adapters to, found once and stored in a file. Thread-safe."""

    def __init__(self, base: Path, options: Mapping[str, Any], directory: Path) -> None:
        """`options` are vLLM's, `directory` is where answers are stored.

        Raises EngineNotInstalled, BaseNotFound.
        """
        self._base = base
        self._options = {name.replace("-", "_"): value for name, value in options.items()}
        self.name = self._name()
        """Identifies an answer: made of everything that the answer depends on."""
        self._file = directory / f"{self.name}.json"
        self._asking = threading.Lock()
        self._found: Adaptable | None = None

    def known(self) -> Adaptable | None:
        """The answer that an engine or a probe gave before, if any."""
        if self._found is None:
            with contextlib.suppress(OSError, ValueError):
                self._found = Adaptable.from_json(self._file.read_bytes())
        return self._found

    def ask(self) -> Adaptable:
        """The answer; builds the class without weights in a separate process if it is not stored.

        Raises BaseUnsupported with the first cause where vLLM cannot build it, or without LoRA.
        """
        with self._asking:
            return self.known() or self.learn(self._probe())

    def learn(self, found: Adaptable) -> Adaptable:
        """Store what an engine answered. If it cannot be written, the next start finds it again."""
        self._found = found
        with contextlib.suppress(OSError):
            write_whole(self._file, found.to_json())
        return found

    def _name(self) -> str:
        build = require_build()
        relevant = {name: self._options.get(name) for name in _RELEVANT}
        facts = [build.distribution, build.version, relevant]
        text = json.dumps(facts, sort_keys=True, default=str).encode()
        try:
            config = (self._base / "config.json").read_bytes()
        except OSError as error:
            raise BaseNotFound(f"{self._base}: config.json cannot be read: {error}") from error
        return hashlib.sha256(text + config).hexdigest()[:32]

    def _probe(self) -> Adaptable:
        relevant = {name: self._options[name] for name in _RELEVANT if name in self._options}
        command = [sys.executable, "-m", "stacked.engine.probe", str(self._base)]
        try:
            done = subprocess.run(
                [*command, json.dumps(relevant, default=str)],
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BaseUnsupported(
                f"{self._base}: vLLM did not build its class in {_SECONDS:.0f} s; "
                "try again when the machine is less busy"
            ) from error
        lines = done.stdout.splitlines()
        if done.returncode == 0 and lines:
            return Adaptable.from_json(lines[-1])
        cause = lines[-1].decode(errors="replace") if done.returncode == 3 and lines else ""
        raise BaseUnsupported(
            f"vLLM cannot serve adapters on base {self._base}: "
            f"{cause or f'building its class ended with status {done.returncode}'}"
        )
