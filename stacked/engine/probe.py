"""A process that builds vLLM's class of a base without weights, and prints what it can adapt.

    python -m stacked.engine.probe BASE OPTIONS

OPTIONS is JSON, vLLM's own names. The last line of standard output is the answer, or with status 3
the reason why there is none. Weights stay on torch's `meta` device: only `config.json` is read,
and no memory is used, whatever the base's size.

Relies on: ``initialize_model`` builds the class that an engine would, and
``LoRAModelManager`` wraps its layers when it is made.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from stacked.engine.adaptable import describe
from stacked.engine.causes import missing_package, sentence
from stacked.engine.platform import prepare_layers
from stacked.store.adaptable import Adaptable

_SMALL = {
    "enable_lora": True,
    "enforce_eager": True,
    "load_format": "dummy",
    "max_cpu_loras": 1,
    "max_lora_rank": 8,
    "max_loras": 1,
    "max_num_seqs": 1,
    "skip_tokenizer_init": True,
}


def probe(base: Path, options: dict[str, Any]) -> Adaptable:
    """What the engine's class of a base applies adapters to. Raises what vLLM raises."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.model_executor.model_loader.utils import get_model_architecture
    from vllm.model_executor.models.interfaces import supports_lora

    config = EngineArgs(model=str(base), **_SMALL, **options).create_engine_config()
    kind, _ = get_model_architecture(config.model_config)
    if not supports_lora(kind):
        raise ValueError(f"{kind.__name__} takes no adapters in this version of vLLM")
    with set_current_vllm_config(config):
        _one_rank()
        prepare_layers()
        model = _built(config)
        vocabulary = config.model_config.get_vocab_size()
        device = torch.device("meta")
        manager = LoRAModelManager(model, 1, 8, vocabulary, config.lora_config, device, config)
    return describe(manager)


def _built(config: Any) -> Any:
    """The class without weights; if its constructor computes, on the CPU with unwritten memory."""
    import torch
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    with set_default_torch_dtype(config.model_config.dtype):
        try:
            with torch.device("meta"):
                return initialize_model(config, model_config=config.model_config)
        except NotImplementedError:
            # Layers that were made are registered by name, and may not be made again.
            config.compilation_config.static_forward_context.clear()
            with torch.device("cpu"):
                return initialize_model(config, model_config=config.model_config)


def _one_rank() -> None:
    """Layers look up how many processes share them: only this one."""
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    with tempfile.NamedTemporaryFile() as file:
        init_distributed_environment(1, 0, f"file://{file.name}", 0, "gloo")
        initialize_model_parallel(1, 1)


def main() -> None:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # vLLM's output must not mix with the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        found = probe(Path(sys.argv[1]), json.loads(sys.argv[2])).to_json().decode()
    except Exception as error:  # noqa: BLE001  vLLM raises anything here; the parent reports it
        cause = missing_package(sys.argv[1]) or sentence(error)
        print(cause.replace("\n", " "), file=answer, flush=True)
        os._exit(3)
    print(found, file=answer, flush=True)
    os._exit(0)  # an orderly exit would have vLLM's distributed state print warnings


if __name__ == "__main__":
    main()
