"""Which kinds of LoRA the engine serves, by the keys of adapter_config.json that select others.

vLLM's kinds are in vllm/lora/peft_helper.py of 0.32.0, PEFT's in peft/tuners/lora/config.py of
0.21.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stacked.errors import AdapterUnsupported
from stacked.store.files import CONFIG_FILE
from stacked.store.text import quoted, shown

INFORMATIONAL = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_version",
        "revision",
        "task_type",
    }
)
"""Keys about an adapter's origin, not what it computes. They are not in the digest."""

# Initialisations that do not change the base; all others change its weights when PEFT loads the
# adapter, which an engine with one shared base cannot do.
_SERVED_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})

# Key -> description. Set to anything but null, false or empty, the adapter is more than
# x + scaling * B(A(x)), and vLLM would either refuse it or, worse, serve it without the extra.
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "a bias on lora_B (lora_bias)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA (BD-LoRA)",
    "alora_invocation_tokens": "Activated LoRA (aLoRA)",
    "layer_replication": "layer replication",
    "modules_to_save": "fully trained modules (modules_to_save)",
    "trainable_token_indices": "trainable tokens (trainable_token_indices)",
    "target_parameters": "LoRA on bare or fused expert parameters (target_parameters)",
    "megatron_config": "Megatron's parallel layers (megatron_config)",
    "arrow_config": "Arrow routing (arrow_config)",
    "kasa_config": "KaSA (kasa_config), which truncates the base's weights",
    "monteclora_config": "MonteCLoRA (monteclora_config)",
    "velora_config": "VeLoRA (velora_config)",
    "ensure_weight_tying": "an adapter shared by tied layers (ensure_weight_tying)",
}
_ADVICE = {
    "modules_to_save": "train them as LoRA targets instead, or merge the adapter into the base",
    "trainable_token_indices": "merge the new tokens into the base",
    "ensure_weight_tying": "target only the layers you mean, with ensure_weight_tying false",
}

# Other keys that PEFT 0.21 writes and that change nothing once the weights are there.
_HARMLESS = frozenset(
    {
        "alpha_pattern",
        "bias",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "runtime_config",
        "target_modules",
        "use_rslora",
    }
)


def refuse_variants(raw: Mapping[str, Any]) -> None:
    """Raise AdapterUnsupported, by name, if a parsed config has more than plain LoRA."""
    for name, called in _UNSUPPORTED.items():
        if raw.get(name):
            advice = _ADVICE.get(name, "train a plain LoRA, or merge the adapter into the base")
            raise AdapterUnsupported(
                f"{CONFIG_FILE}: the adapter uses {called}, which is not served; {advice}"
            )
    bias = raw.get("bias", "none")
    if bias != "none":
        raise AdapterUnsupported(
            f'{CONFIG_FILE}: bias is {shown(bias)}; trained biases are not served, only "none"'
        )
    init = raw.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _SERVED_INITS:
        raise AdapterUnsupported(
            f"{CONFIG_FILE}: init_lora_weights {shown(init)} changed the base's weights in "
            "training, and this base has the original ones; convert the adapter with PEFT's "
            "path_initial_model_for_weight_conversion"
        )
    for name, value in raw.items():
        if name.startswith("use_") and value and name not in _HARMLESS and name not in _UNSUPPORTED:
            raise AdapterUnsupported(
                f"{CONFIG_FILE}: {quoted(name)} switches on a LoRA variant that is not known here, "
                "so it could not be served as trained"
            )


def unknown_keys(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """A warning about keys of other tools, if there are any."""
    known = _HARMLESS | INFORMATIONAL | _UNSUPPORTED.keys()
    strange = sorted(name for name, value in raw.items() if value and name not in known)
    if not strange:
        return ()
    names = ", ".join(quoted(name, 40) for name in strange[:5])
    return (f"{CONFIG_FILE} has keys that PEFT does not write, and nothing reads them: {names}",)
