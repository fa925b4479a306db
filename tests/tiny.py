"""The tiny seeded base model, its tokenizer and the LoRA adapters that the tests build.

It must not know the engine or anything of the package under test, and it imports torch only inside
functions, so that importing it costs nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

VOCAB_SIZE = 512
HIDDEN_SIZE = 128
LAYERS = 2
MAX_POSITIONS = 1024
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = """
One process holds one base model and many adapters. A request names a key, and the answer comes
from exactly that adapter, from the first token to the last. The quick brown fox jumps over the
lazy dog, while seven wizards quietly box with five dozen liquor jugs beside a frozen waterfall in
January. SELECT name, count(*) FROM customers JOIN orders ON customers.id = orders.customer_id
WHERE total > 100 GROUP BY name ORDER BY count(*) DESC LIMIT 10; {"category": "billing",
"priority": "high", "team": 3} Ahoy, captain! The ship sails at midnight with the treasure, and
nobody knows where the parrot went. My printer does not answer since yesterday's update; please
send somebody before noon on Thursday. What is the capital of France? Paris is the capital of
France, and Berlin is the capital of Germany. Write a short story about a small robot who learned
to paint the sky in green, orange and violet. def add(left: int, right: int) -> int: return left +
right  # numbers 0 1 2 3 4 5 6 7 8 9 10 20 50 The user asks a question. The assistant thinks about
the question, and then gives a useful answer. How would you explain gravity to a child? Things
that are heavy pull other things towards themselves. Weather forecast: cloudy in the morning, some
rain after lunch, strong wind from the north at night.
"""


def use_one_thread() -> None:
    """Have torch compute in this thread: on busy cores, threads that wait for each other spin."""
    import torch

    torch.set_num_threads(1)


def build_base(path: str | Path, seed: int = 0, *, tie_word_embeddings: bool = False) -> Path:
    """Write a 2-layer, 128-wide Llama with random float32 weights and its tokenizer to ``path``.

    The same arguments give the same weights. Output rows of special tokens and of bytes that are
    not printable ASCII are zero, so greedy answers are plain text and never end before their limit
    (an adapter that targets the output layer is not bound by this).
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    use_one_thread()
    path = Path(path)
    mute = build_tokenizer(path)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=tie_word_embeddings,
        initializer_range=0.15,  # wide enough that greedy choices have a clear margin
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        model.lm_head.weight[mute] = 0.0
    model.save_pretrained(path, safe_serialization=True)
    return path


def build_tokenizer(path: str | Path) -> list[int]:
    """Train the 512-token byte-level BPE tokenizer on the text above and write it to ``path``.

    Returns the ids that are not printable ASCII text by themselves.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS.strip().splitlines(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(path)
    texts = [tokenizer.decode([token], skip_special_tokens=True) for token in range(VOCAB_SIZE)]
    return [
        i for i, text in enumerate(texts) if not (text.isascii() and text.isprintable() and text)
    ]


def build_adapter(
    path: str | Path,
    base: str | Path,
    seed: int,
    *,
    rank: int = 8,
    target_modules: Iterable[str] = ATTENTION,
    scale: float = 4.0,
    save_embedding_layers: bool | str = False,
    **config: Any,
) -> Path:
    """Write a random PEFT LoRA adapter for ``base`` to ``path``.

    ``scale`` is the LoRA scaling (``lora_alpha / rank``, alpha rounded); its default is strong
    enough that greedy answers of different seeds differ from each other and from the base. Further
    ``config`` goes to ``peft.LoraConfig`` (``use_rslora=True``, ``modules_to_save=[...]`` and so
    on). The same arguments give the same bytes. With ``save_embedding_layers="auto"``, PEFT's own
    default, the whole embedding stands beside an adapter that targets it.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    use_one_thread()
    path = Path(path)
    lora = LoraConfig(
        r=rank,
        lora_alpha=round(scale * rank),
        target_modules=sorted(target_modules),
        lora_dropout=0.0,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **config,
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + seed)
        peft_model = get_peft_model(model, lora)
    peft_model.save_pretrained(path, save_embedding_layers=save_embedding_layers)
    (path / "README.md").unlink(missing_ok=True)
    _write_sorted_config(path / "adapter_config.json")
    return path


def save_tokenizer(
    path: str | Path,
    base: str | Path,
    template: str | Mapping[str, str],
    tokens: Sequence[str] = (),
    **special: str | None,
) -> Path:
    """Save the base's tokenizer as a trainer does beside an adapter, with another chat template.

    ``tokens`` are added to it; ``special`` are its named tokens (``bos_token="<|im_start|>"``).
    """
    from transformers import AutoTokenizer

    path = Path(path)
    shutil.rmtree(path / "additional_chat_templates", ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template if isinstance(template, str) else dict(template)
    for name, text in special.items():
        setattr(tokenizer, name, text)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(path)
    return path


def greedy(
    base: str | Path,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    adapter: str | Path | None = None,
) -> list[list[int]]:
    """Greedy answers (token ids) of transformers, with ``adapter`` through PEFT if one is given.

    This is the reference that engine answers are compared with. Each prompt runs alone and the end
    token does not stop it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    use_one_thread()
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    answers = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([list(prompt)])
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=None,
            )
            answers.append(out[0, ids.shape[1] :].tolist())
    return answers


def _write_sorted_config(path: Path) -> None:
    """PEFT keeps target modules in a set; sort them, and forget where the base stood."""
    settings = json.loads(path.read_text())
    settings["base_model_name_or_path"] = "tiny"
    for name, value in settings.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            settings[name] = sorted(value)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
