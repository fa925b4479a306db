"""Mutators of adapter_config.json, of tokenizer files and of chat templates."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tests.hostile.draft import (
    CONFIG,
    ODD,
    WEIGHTS,
    Draft,
    Mutator,
    flipped,
    many_keys,
    nested,
    pick,
)

_FIELDS = (
    "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "peft_type", "task_type",
    "bias", "use_dora", "use_rslora", "lora_bias", "fan_in_fan_out", "lora_dropout", "revision",
    "modules_to_save", "layers_to_transform", "layers_pattern", "exclude_modules", "auto_mapping",
    "base_model_name_or_path", "init_lora_weights", "loftq_config", "eva_config", "corda_config",
    "megatron_config", "megatron_core", "trainable_token_indices", "layer_replication",
    "target_parameters", "use_qalora", "qalora_group_size", "runtime_config", "arrow_config",
    "alora_invocation_tokens", "ensure_weight_tying", "inference_mode", "peft_version", "__proto__",
)  # fmt: skip
_RANKS = (0, 1, 2, 7, 8, 9, 64, 512, 513, 4096, 2**31, 2**63, 8.0, "8", True, 1e300)
_ALPHAS = (0, -1, -32, 1, 1e-300, 1e38, 1e39, 1e300, 10**400, 5e-324, "32", True)
_PATTERNS = (
    "(a+)+$",
    "(.*)*q",
    "(.*.*)*\\.x$",
    "(((((.*)*)*)*)*)*!",
    "(?:(?:q|q_)+)+k",
    "(q|q)*proj!",
    "a{65535}{65535}",
    "(" * 5000 + ")" * 5000,
    "(" * 90 + "x" + ")*" * 90,
    "[",
    "(",
    "*",
    "\\",
    "(?P<a>.)(?P=a)*$",
    "(?<=.*)x",
    "(?i:Q_PROJ)",
    "(?s).*",
    "",
    "|" * 20_000,
    "^",
    "$",
    ".",
    "q_proj",
    "q_proj|v_proj",
    "\\d+\\.self_attn\\.q_proj",
    "x" * 50_000,
    "(x{0,999}){0,999}",
    "[\\w-\\d]",
    "\\Z",
    "(?#",
    "[[:alpha:]]",
    "\ud800",
    "\0",
    "(?=(.*)*z)",
    "model.layers.0.self_attn.q_proj",
)  # fmt: skip
_NUMBERS = ("9" * 6000, "9" * 900_000, "NaN", "1e999", "-Infinity", "1e-999", "-0", "0.1e1")
_TEMPLATES = (
    "{% for a in range(10**9) %}x{% endfor %}", "{{ 'a' * 10**10 }}", "{{ 9**9**9**9 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}", "{{ messages.__class__ }}",
    "{% include '/etc/passwd' %}", "{% extends 'x' %}", "{% import 'os' as os %}", "{{" * 10_000,
    "{% if " + "(" * 3000 + "1" + ")" * 3000 + " %}{% endif %}", "{{ " + "-" * 50_000 + "1 }}",
    "{{ [" + "[" * 2000 + "]" * 2000 + "] }}", "{{ raise_exception('no') }}", "{{ 1/0 }}", "",
    "{% set x = namespace(a=[]) %}{% for i in range(99999) %}{% set x.a = [x.a, x.a] %}{% endfor %}"
    "{{ x.a }}", "x" * 200_000, "\0", "\x1b[31m", "{% raw %}", "{{ lipsum(n=100000) }}",
    "{% for a in range(999) %}{% for b in range(999) %}{% for c in range(999) %}{% endfor %}"
    "{% endfor %}{% endfor %}", "{{ 'x'.join(range(10**8)|map('string')) }}",
    "{{ ('%' ~ '0999999999d') % 1 }}", "{{ '{:>9999999999}'.format(1) }}",
    "{{ messages|length }}", "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{{ messages[0].content }} and then", "{% for m in messages %}{{ m['role'] }}: {% endfor %}",
    "{{ " + " + ".join(["1"] * 20_000) + " }}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
)  # fmt: skip


def _field(rng: random.Random, draft: Draft) -> str:
    name = pick(rng, _FIELDS)
    values = {"r": _RANKS, "lora_alpha": _ALPHAS}.get(name, ODD)
    draft.config[name] = pick(rng, values if rng.random() < 0.7 else ODD)
    return f"{name} {str(draft.config[name])[:30]!r}"


def _absent(rng: random.Random, draft: Draft) -> str:
    name = pick(rng, [*draft.config])
    del draft.config[name]
    return f"no {name}"


def _pattern(rng: random.Random, draft: Draft) -> str:
    name = pick(rng, ("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"))
    made = [pick(rng, _PATTERNS) for _ in range(rng.choice((1, 1, 2, 6)))]
    if name.startswith(("target", "exclude")):
        draft.config[name] = made[0] if rng.random() < 0.5 else made
    else:
        values = _RANKS if name == "rank_pattern" else _ALPHAS
        many = {f"m{number}": 8 for number in range(20_000)} if rng.random() < 0.05 else {}
        draft.config[name] = {**{text: pick(rng, (8, *values)) for text in made}, **many}
    return f"{name} {made[0][:30]!r}"


def _config_text(rng: random.Random, draft: Draft) -> str:
    text = json.dumps(draft.config)
    depth = pick(rng, (50, 990, 5000, 300_000))
    texts: tuple[Callable[[], bytes], ...] = (
        lambda: flipped(rng, text.encode()),
        lambda: text.encode()[: rng.randrange(len(text))],
        lambda: text.encode("utf-16"),
        lambda: b"\xef\xbb\xbf" + text.encode(),
        lambda: text.encode() + b" x",
        lambda: b"[" + text.encode() + b"]",
        lambda: nested(rng, depth).encode(),
        lambda: f'{{"x":{nested(rng, depth)},{text[1:]}'.encode(),
        lambda: f'{{"r":16,{text[1:]}'.encode(),
        lambda: f'{{"x":{pick(rng, _NUMBERS)},{text[1:]}'.encode(),
        lambda: text.replace("LORA", "\\ud800").encode(),
        lambda: text.encode().replace(b"LORA", b"\xff\xfe"),
        lambda: many_keys(60_000, text),
        lambda: pick(rng, (b"", b"null", b"1", b'"', b"\0" * 100)),
        lambda: b" " * 1_100_000 + text.encode(),
    )
    draft.files[CONFIG] = pick(rng, texts)()
    return "config text"


def _tokenizer_config(rng: random.Random, draft: Draft) -> str:
    template: Any = pick(rng, _TEMPLATES)
    tree: dict[str, Any] = {"chat_template": template}
    match rng.randrange(6):
        case 0:
            tree["chat_template"] = [
                {"name": name, "template": pick(rng, _TEMPLATES)}
                for name in pick(rng, (["default"], ["tool_use"], ["x"], ["default", "../x"]))
            ]
        case 1:
            many = rng.choice((2, 17, 3000))
            rows = [{"name": f"n{number}", "template": "x"} for number in range(many)]
            tree["chat_template"] = [{"name": "default", "template": "x"}, *rows]
        case 2:
            tree["chat_template"] = pick(rng, ODD)
        case 3:
            tree[pick(rng, ("added_tokens_decoder", "eos_token", "extra_special_tokens"))] = pick(
                rng, (*ODD, {"5": "x"}, {"5": {"content": 1}}, {"-1": "x"}, {"²": {"content": "x"}})
            )
    draft.files["tokenizer_config.json"] = json.dumps(tree).encode()
    return f"template {str(tree['chat_template'])[:30]!r}"


def _template_file(rng: random.Random, draft: Draft) -> str:
    text = pick(rng, _TEMPLATES).encode("utf-8", "surrogatepass")
    names = ("chat_template.jinja", "additional_chat_templates/a.jinja")
    name = pick(rng, names)
    draft.files[name] = flipped(rng, text) if rng.random() < 0.3 else text
    for number in range(rng.choice((0, 0, 3, 40))):
        draft.files[f"additional_chat_templates/{number}.jinja"] = b"x"
    return f"{name} {text[:30]!r}"


def _tokenizer_file(rng: random.Random, draft: Draft) -> str:
    name = pick(
        rng,
        ("tokenizer.json", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"),
    )
    vocabulary = pick(rng, ({"a": pick(rng, ODD)}, {pick(rng, ("a", "\0", "😀")): 3}, *ODD))
    added = pick(rng, ([{"content": "x", "id": pick(rng, ODD)}], [pick(rng, ODD)], *ODD))
    model = {"vocab": vocabulary, "merges": pick(rng, ODD)}
    trees = (
        {"model": model, "added_tokens": added, "normalizer": pick(rng, ODD)},
        pick(rng, ODD), {"x": pick(rng, ODD)}, {"<|im_end|>": pick(rng, ODD)},
        {"eos_token": {"content": pick(rng, ODD)}},
    )  # fmt: skip
    text = json.dumps(pick(rng, trees))
    depth = pick(rng, (900, 5000, 100_000, 2_000_000))
    deep = rng.random() < 0.2
    texts = (nested(rng, depth), f'{{"model":{nested(rng, depth)}}}') if deep else (text, text[:-1])
    draft.files[name] = pick(rng, texts).encode("utf-8", "surrogatepass")
    return f"{name} {draft.files[name][:30]!r}"


def _other_files(rng: random.Random, draft: Draft) -> str:
    match rng.randrange(3):
        case 0:
            name = pick(rng, ("adapter_model.bin", "x.pkl", "evil.py", "adapter_model.pt"))
            draft.files[name] = b"cos\nsystem\n(S'touch /tmp/stacked-hostile'\ntR."
        case 1:
            draft.files[pick(rng, (CONFIG, WEIGHTS))] = b""
        case _:
            draft.files["tokenizer.json"] = b" " * 5_000_000
    return "other files"


MUTATORS: tuple[Mutator, ...] = (
    _field, _field, _field, _absent, _pattern, _pattern, _config_text, _tokenizer_config,
    _template_file, _tokenizer_file, _other_files,
)  # fmt: skip
