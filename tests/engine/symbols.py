"""Every name of vLLM's that Stacked takes, by where vLLM has it. tests/engine/test_symbols.py holds
this against Stacked's code, which may take nothing else, and against a version of vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Symbols(NamedTuple):
    """Names of a module, or of one of its classes; in versions from `since` to `until`."""

    module: str
    owner: str
    names: str
    since: tuple[int, int] = (0, 0)
    until: tuple[int, int] = (99, 0)


_PARSER = "make_arg_parser validate_parsed_serve_args"
_MESSAGES = "AnthropicServingMessages"

SYMBOLS = (
    # Options, and vLLM's own app.
    Symbols("vllm.utils.argparse_utils", "", "FlexibleArgumentParser"),
    Symbols("vllm.entrypoints.common.cli_args", "", _PARSER, since=(0, 33)),
    Symbols("vllm.entrypoints.launchers.cli_args", "", _PARSER, since=(0, 29), until=(0, 32)),
    Symbols("vllm.entrypoints.openai.cli_args", "", _PARSER, until=(0, 28)),
    Symbols("vllm.entrypoints.launchers.app", "", "build_app", since=(0, 29)),
    Symbols("vllm.entrypoints.launchers.api_server.app_state", "", "init_app_state", since=(0, 29)),
    Symbols("vllm.entrypoints.openai.api_server", "", "build_app init_app_state"),
    Symbols("vllm.entrypoints.openai.models", "", "serving"),
    Symbols("vllm.entrypoints.openai.models.serving", "", "ModelCard ModelList ModelPermission"),
    Symbols(
        "vllm.entrypoints.openai.models.serving",
        "OpenAIServingModels",
        "base_model_paths is_base_model lora_requests model_config model_name "
        "show_available_models",
    ),
    Symbols("vllm.entrypoints.anthropic.serving", _MESSAGES, "_merge_inline_system"),
    Symbols(
        "vllm.entrypoints.anthropic.serving",
        _MESSAGES,
        "_disabled_thinking_effort",
        since=(0, 31),
        until=(0, 32),
    ),
    Symbols(
        "vllm.entrypoints.anthropic.serving",
        _MESSAGES,
        "disabled_thinking_effort_resolver",
        since=(0, 33),
    ),
    Symbols(
        "vllm.entrypoints.anthropic.serving",
        "DisabledThinkingEffortResolver",
        "_effort",
        since=(0, 33),
    ),
    Symbols(
        "vllm.entrypoints.serve.utils.api_utils", "", "listen_for_disconnect with_cancellation"
    ),
    # The engine.
    Symbols("vllm", "", "ModelRegistry SamplingParams envs"),
    Symbols("vllm.envs", "", "disable_envs_cache enable_envs_cache"),
    Symbols("vllm.model_executor.models.registry", "_ModelRegistry", "models"),
    Symbols("vllm.model_executor.models.registry", "_BaseRegisteredModel", "load_model_cls"),
    Symbols("vllm.engine.arg_utils", "", "AsyncEngineArgs EngineArgs"),
    Symbols(
        "vllm.engine.arg_utils",
        "EngineArgs",
        "create_engine_config disable_log_stats enable_lora from_cli_args kv_sharing_fast_prefill",
    ),
    Symbols("vllm.engine.arg_utils", "AsyncEngineArgs", "enable_log_requests"),
    Symbols("vllm.usage.usage_lib", "", "UsageContext"),
    Symbols("vllm.usage.usage_lib", "UsageContext", "OPENAI_API_SERVER"),
    Symbols("vllm.inputs", "", "TokensPrompt"),
    Symbols("vllm.outputs", "", "RequestOutput"),
    Symbols(
        "vllm.outputs",
        "RequestOutput",
        "num_cached_tokens outputs prompt_logprobs prompt_token_ids request_id",
    ),
    Symbols("vllm.outputs", "CompletionOutput", "finish_reason logprobs text token_ids"),
    Symbols("vllm.logprobs", "Logprob", "logprob"),
    Symbols(
        "vllm.sampling_params",
        "SamplingParams",
        "extra_args max_tokens n output_kind prompt_logprobs",
    ),
    Symbols("vllm.v1.engine.async_llm", "", "AsyncLLM"),
    Symbols(
        "vllm.v1.engine.async_llm",
        "AsyncLLM",
        "collective_rpc engine_core errored from_vllm_config generate get_supported_tasks "
        "get_tokenizer list_loras model_config output_processor renderer shutdown vllm_config",
    ),
    Symbols(
        "vllm.v1.engine.output_processor",
        "OutputProcessor",
        "external_req_ids process_outputs request_states",
    ),
    Symbols("vllm.v1.engine.output_processor", "RequestState", "is_prefilling lora_name"),
    Symbols("vllm.v1.engine.exceptions", "", "EngineDeadError"),
    Symbols("vllm.v1.engine", "", "async_llm coordinator core utils"),
    Symbols("vllm.v1.engine.coordinator", "", "get_mp_context"),
    Symbols("vllm.v1.engine.utils", "", "get_mp_context"),
    # Several engines behind one client.
    Symbols("vllm.v1.engine.core_client", "AsyncMPClient", "_call_utility_async"),
    Symbols("vllm.v1.engine.core_client", "MPClient", "core_engines"),
    Symbols("vllm.v1.engine.core_client", "DPLBAsyncMPClient", "reqs_in_flight"),
    Symbols("vllm.v1.executor", "", "uniproc_executor"),
    Symbols(
        "vllm.config.vllm",
        "VllmConfig",
        "compilation_config lora_config model_config parallel_config scheduler_config "
        "speculative_config",
    ),
    Symbols(
        "vllm.config.model",
        "ModelConfig",
        "dtype get_vocab_size hf_config logprobs_mode max_model_len model",
    ),
    Symbols(
        "vllm.config.parallel",
        "ParallelConfig",
        "data_parallel_size distributed_executor_backend world_size",
    ),
    Symbols(
        "vllm.config.scheduler",
        "SchedulerConfig",
        "long_prefill_token_threshold max_num_batched_tokens max_num_seqs",
    ),
    Symbols("vllm.v1.core.sched.scheduler", "", "Scheduler"),
    Symbols(
        "vllm.v1.core.sched.scheduler",
        "Scheduler",
        "current_step num_spec_tokens running schedule scheduler_config waiting",
    ),
    Symbols("vllm.v1.core.sched.request_queue", "RequestQueue", "add_request remove_requests"),
    Symbols(
        "vllm.v1.request",
        "Request",
        "is_prefill_chunk next_decode_eligible_step sampling_params",
    ),
    Symbols("vllm.config.compilation", "CompilationConfig", "static_forward_context"),
    Symbols("vllm.config.lora", "LoRAConfig", "lora_dtype max_loras"),
    # Adapters in a worker.
    Symbols("vllm.lora.request", "", "LoRARequest"),
    Symbols("vllm.lora.request", "LoRARequest", "lora_int_id lora_name lora_path"),
    Symbols("vllm.v1.worker.worker_base", "WorkerBase", "device model_runner"),
    Symbols("vllm.v1.worker.lora_model_runner_mixin", "LoRAModelRunnerMixin", "lora_manager"),
    Symbols(
        "vllm.lora.worker_manager",
        "LRUCacheWorkerLoRAManager",
        "_adapter_manager _load_adapter add_dummy_lora lora_config",
    ),
    Symbols("vllm.lora.model_manager", "", "LoRAModelManager"),
    Symbols(
        "vllm.lora.model_manager",
        "LRUCacheLoRAModelManager",
        "_active_adapters _add_adapter _is_moe _last_mapping _registered_adapters "
        "activate_adapter capacity lora_index_to_id model modules packed_modules "
        "packed_modules_mapping remove_adapter",
    ),
    Symbols("vllm.lora", "", "lora_model"),
    Symbols("vllm.lora.lora_model", "", "PIN_MEMORY safetensors"),
    Symbols("vllm.lora.lora_model", "LoRAModel", "id loras"),
    Symbols("vllm.lora.lora_weights", "LoRALayerWeights", "optimize"),
    Symbols("vllm.lora.layers.utils", "LoRAMapping", "prompt_mapping"),
    Symbols("vllm.utils.cache", "LRUCache", "order pinned_items"),
    Symbols(
        "vllm.lora.layers.base_linear",
        "BaseLinearLayerWithLoRA",
        "base_layer lora_a_stacked lora_b_stacked punica_wrapper",
    ),
    # What a base applies adapters to, and its class without weights.
    Symbols("vllm.config", "", "set_current_vllm_config"),
    Symbols(
        "vllm.distributed",
        "",
        "get_tensor_model_parallel_world_size init_distributed_environment "
        "initialize_model_parallel",
    ),
    Symbols("vllm.model_executor.layers.linear", "", "LinearBase"),
    Symbols(
        "vllm.model_executor.model_loader.utils", "", "get_model_architecture initialize_model"
    ),
    Symbols("vllm.model_executor.models.interfaces", "", "supports_lora"),
    Symbols("vllm.model_executor.models.interfaces", "SupportsQuant", "hf_to_vllm_mapper"),
    Symbols("vllm.utils.torch_utils", "", "set_default_torch_dtype"),
    Symbols(
        "vllm.model_executor.models.utils",
        "WeightsMapper",
        "orig_to_new_prefix orig_to_new_regex orig_to_new_substr orig_to_new_suffix",
    ),
    Symbols(
        "vllm.model_executor.models.utils", "WeightsMapper", "get_rename_mapper", since=(0, 29)
    ),
    Symbols(
        "vllm.model_executor.models.utils", "WeightsMapper", "get_unstacked_mapper", until=(0, 28)
    ),
    # Text-only adapters of multimodal models.
    Symbols(
        "vllm.lora.model_manager",
        "LRUCacheLoRAModelManager",
        "_get_text_lora_names",
        since=(0, 33),
    ),
    Symbols("vllm.lora.model_manager", "LRUCacheLoRAModelManager", "mm_mapping supports_mm"),
    Symbols("vllm.model_executor.models.module_mapping", "MultiModelKeys", "language_model"),
    # On a CPU.
    Symbols("vllm.platforms", "", "cpu_platform_plugin current_platform"),
    Symbols(
        "vllm.platforms.cpu", "CpuPlatform", "check_and_update_config get_punica_wrapper is_cpu"
    ),
    Symbols("vllm.platforms.cpu", "CpuPlatform", "register_triton_kernel_overrides", since=(0, 31)),
    Symbols("vllm.platforms.interface", "", "Platform"),
    Symbols("vllm.utils.import_utils", "", "resolve_obj_by_qualname"),
    Symbols("vllm.lora.punica_wrapper.punica_base", "", "PunicaWrapperBase"),
    Symbols(
        "vllm.lora.punica_wrapper.punica_base",
        "PunicaWrapperBase",
        "_embeddings_indices add_expand add_lora_embedding add_lora_fused_moe add_lora_linear "
        "add_lora_logits add_lora_w13 add_lora_w2 add_shrink sampler_indices token_lora_indices "
        "update_metadata",
    ),
    Symbols(
        "vllm.lora.punica_wrapper.punica_base",
        "PunicaWrapperBase",
        "apply_lora_full_linear",
        since=(0, 31),
    ),
    Symbols("vllm.lora.layers.fused_moe", "FusedMoEWithLoRA", "can_replace_layer"),
    Symbols("vllm.lora.layers.fused_moe", "FusedMoE3DWithLoRA", "can_replace_layer"),
    Symbols(
        "vllm.model_executor.layers.fused_moe.config",
        "FusedMoEConfig",
        "__post_init__ is_lora_enabled",
    ),
    Symbols("vllm.model_executor.layers.rotary_embedding.base", "RotaryEmbedding", "forward_cpu"),
    Symbols(
        "vllm.model_executor.layers.mamba.ops.cpu.gdn_attention",
        "",
        "_causal_conv1d_fwd_cpu",
        since=(0, 31),
    ),
    Symbols("vllm.v1.kv_cache_interface", "", "KVCacheConfig"),
    Symbols("vllm.v1.worker.cpu_model_runner", "", "CPUModelRunner"),
    Symbols("vllm.model_executor.layers.attention.attention", "Attention", "kv_cache"),
    Symbols("vllm.v1.kv_cache_interface", "KVCacheConfig", "needs_kv_cache_zeroing num_blocks"),
    Symbols(
        "vllm.v1.worker.cpu_model_runner",
        "CPUModelRunner",
        "_init_kv_zero_meta _zero_block_ids compilation_config kv_cache_config",
    ),
    # Prompts.
    Symbols("vllm.renderers", "", "hf"),
    Symbols("vllm.renderers.chat_utils", "", "load_chat_template", since=(0, 32)),
    Symbols("vllm.entrypoints.chat_utils", "", "load_chat_template", until=(0, 31)),
    Symbols(
        "vllm.renderers.hf",
        "",
        "AssistantTracker HfRenderer _detect_content_format resolve_chat_template "
        "safe_apply_chat_template",
    ),
    Symbols(
        "vllm.renderers.hf",
        "HfRenderer",
        "_apply_chat_template_async get_tokenizer model_config render_chat render_chat_async "
        "render_cmpl render_cmpl_async",
    ),
    Symbols("vllm.renderers.params", "ChatParams", "chat_template chat_template_kwargs"),
    # Benchmarks.
    Symbols("vllm.benchmarks.serve", "", "add_cli_args main_async"),
)

# What stands in the text of a module: attributes of an app's state, variables, metrics.
TEXTS = (
    Symbols(
        "vllm.entrypoints.launchers.api_server.app_state",
        "",
        "state.openai_serving_models",
        since=(0, 29),
    ),
    Symbols("vllm.entrypoints.openai.api_server", "", "state.openai_serving_models", until=(0, 28)),
    Symbols("vllm.entrypoints.generate.api_router", "", "state.anthropic_serving_messages"),
    Symbols("vllm.entrypoints.launchers.launcher", "", "state.server", since=(0, 29)),
    Symbols("vllm.entrypoints.launcher", "", "state.server", until=(0, 28)),
    Symbols(
        "vllm.envs",
        "",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING VLLM_CACHE_ROOT VLLM_ENABLE_RESPONSES_API_STORE "
        "VLLM_LOGGING_CONFIG_PATH VLLM_LOGGING_LEVEL VLLM_NO_USAGE_STATS "
        "VLLM_TUNED_CONFIG_FOLDER VLLM_WORKER_MULTIPROC_METHOD",
    ),
    Symbols("vllm.v1.metrics.loggers", "", "vllm:lora_requests_info vllm:prefix_cache_hits"),
)

# What of its log is read while an engine starts, and where it is written.
LOG_LINES = (
    ("vllm.v1.engine.core", "Initializing a V1 LLM engine"),
    ("vllm.v1.worker.cpu_model_runner", "Starting to load model"),
    ("vllm.v1.worker.gpu_model_runner", "Starting to load model"),
    ("vllm.v1.core.kv_cache_utils", "KV cache size"),
)


def names(symbols: Iterable[Symbols]) -> Iterator[tuple[str, str]]:
    """Each module with one name in it."""
    for each in symbols:
        for name in each.names.split():
            yield each.module, f"{each.owner}.{name}" if each.owner else name
