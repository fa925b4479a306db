"""Mutators of a safetensors file: its length, header, offsets, types, shapes, names and values."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from tests.hostile.draft import ODD, WEIGHTS, Draft, Mutator, flipped, many_keys, nested, pick

_TYPES = (
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "C64",
    "I8", "I64", "U8", "U64", "BOOL", "f32", "F32 ", "", "\0", "😀", "F" * 10_000,
)  # fmt: skip
_LENGTHS = (0, 1, 2, 7, 2**16, 100_000_001, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_NUMBERS = (-1, 0, 1, 3, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 1.5, "4", None)
_BITS = {
    "nan": 0x7FC00000, "signalling nan": 0x7F800001, "infinity": 0x7F800000,
    "-infinity": 0xFF800000, "largest": 0x7F7FFFFF, "-largest": 0xFF7FFFFF, "denormal": 1,
    "-0": 0x80000000, "1e30": 0x7149F2CA, "1e10": 0x501502F9,
}  # fmt: skip
_NAMES = (
    "", ".", "..", "." * 500, "../../../../tmp/out", "/etc/passwd", "a\0b", "a\r\nb: c", "\x1b[2J",
    "😀", "\ud800", "weight", "lora_A.weight", "lora_embedding_A", "base_model.model.",
    "base_model.model.model.layers.99999999999999999999.self_attn.q_proj.lora_A.weight",
    "base_model.model.model.layers.-1.self_attn.q_proj.lora_A.weight",
    "base_model.model.model.layers.٣.self_attn.q_proj.lora_B.weight",
    "base_model.model.model.layers.0.self_attn.q_proj.bias",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
    "base_model.model.lm_head.lora_A.weight",
    "base_model.model.model.embed_tokens.lora_embedding_A",
    "base_model.model.model.embed_tokens.weight", "n" * 1025, "n" * 100_000,
)  # fmt: skip


def _is_odd(row: Any) -> bool:
    """Whether an earlier mutator has left something else of a row's parts."""
    return (
        not isinstance(row, dict)
        or not all(
            isinstance(row.get(key), list) and all(isinstance(number, int) for number in row[key])
            for key in ("data_offsets", "shape")
        )
        or len(row["data_offsets"]) != 2
    )


def _with(row: Any, key: str, value: object) -> Any:
    return {**row, key: value} if isinstance(row, dict) else {key: value}


def _length(rng: random.Random, draft: Draft) -> str:
    header = draft.header()
    length = pick(rng, (*_LENGTHS, len(header) + rng.randint(-9, 9), rng.getrandbits(64)))
    draft.files[WEIGHTS] = draft.weights(length=max(length, 0))
    return f"header length {length}"


def _cut(rng: random.Random, draft: Draft) -> str:
    whole = draft.weights()
    at = rng.randrange(len(whole)) if rng.random() < 0.7 else rng.randrange(12)
    draft.files[WEIGHTS] = whole[:at]
    return f"cut at {at}"


def _flips(rng: random.Random, draft: Draft) -> str:
    whole = draft.weights()
    end = len(whole) - len(draft.data) if rng.random() < 0.8 else len(whole)
    draft.files[WEIGHTS] = flipped(rng, whole[:end]) + whole[end:]
    return "bytes flipped"


def _offsets(rng: random.Random, draft: Draft) -> str:
    at = rng.randrange(len(draft.rows))
    name, row = draft.rows[at]
    begin, end = (0, len(draft.data)) if _is_odd(row) else row["data_offsets"]
    step = rng.randint(-8, 8)
    spans: tuple[object, ...] = (
        [end, begin], [begin, begin], [0, end], [begin, len(draft.data)], [begin + step, end],
        [begin + step, end + step], [begin, end, end], [begin], {}, None, pick(rng, ODD),
        [pick(rng, _NUMBERS), end], [begin, pick(rng, _NUMBERS)],
    )  # fmt: skip
    draft.rows[at] = (name, _with(row, "data_offsets", pick(rng, spans)))
    return "offsets"


def _dtype(rng: random.Random, draft: Draft) -> str:
    kind = pick(rng, _TYPES) if rng.random() < 0.9 else pick(rng, ODD)
    some = range(len(draft.rows)) if rng.random() < 0.5 else [rng.randrange(len(draft.rows))]
    for at in some:
        name, row = draft.rows[at]
        draft.rows[at] = (name, _with(row, "dtype", kind))
    return f"dtype {str(kind)[:20]!r}"


def _shape(rng: random.Random, draft: Draft) -> str:
    at = rng.randrange(len(draft.rows))
    name, row = draft.rows[at]
    shape = [] if _is_odd(row) else list(row["shape"])
    shapes: tuple[object, ...] = (
        shape[::-1], [], [0], [*shape, 1], [1, *shape], [*shape, 0], [1] * 3000, [2**32, 2**32],
        [2**62, 4, 4], [-side for side in shape if isinstance(side, int)], [1, 2**20], None,
        [pick(rng, _NUMBERS), pick(rng, _NUMBERS)], pick(rng, ODD),
    )  # fmt: skip
    draft.rows[at] = (name, _with(row, "shape", pick(rng, shapes)))
    return "shape"


def _name(rng: random.Random, draft: Draft) -> str:
    at = rng.randrange(len(draft.rows))
    name, row = draft.rows[at]
    parts = name.split(".")
    place = rng.randrange(len(parts))
    swapped = name.replace("lora_A", "lora_X").replace("lora_B", "lora_A").replace("_X", "_B")
    made = pick(
        rng,
        (
            *_NAMES,
            swapped,
            draft.rows[0][0],
            name + ".weight",
            "module." * rng.choice((1, 50, 20_000)) + name,
            ".".join([*parts[:place], pick(rng, ("_orig_mod", "x", "", "9")), *parts[place:]]),
            ".".join(parts[:place] + parts[place + 1 :]),
        ),
    )
    draft.rows[at] = (made, row)
    return f"name {made[:40]!r}"


def _rows(rng: random.Random, draft: Draft) -> str:
    at = rng.randrange(len(draft.rows))
    match rng.randrange(5):
        case 0:
            draft.rows.append(draft.rows[at])
        case 1:
            del draft.rows[at]
        case 2:
            draft.rows.clear()
        case 3:
            count = pick(rng, (100, 5000, 60_000))
            row = {"dtype": "F32", "shape": [0], "data_offsets": [len(draft.data)] * 2}
            draft.rows += [(f"t{number}.lora_A.weight", row) for number in range(count)]
        case _:
            draft.rows[at] = (draft.rows[at][0], pick(rng, ODD))
    draft.rows = draft.rows or [("x", {})]
    return "rows"


def _metadata(rng: random.Random, draft: Draft) -> str:
    large = {f"{number}": "" for number in range(rng.choice((1, 50_000)))}
    draft.metadata = pick(rng, (*ODD, {"k": "v" * 1_000_000}, large))
    return "metadata"


def _text(rng: random.Random, draft: Draft) -> str:
    text = draft.header().decode()
    depth = pick(rng, (100, 900, 5000, 200_000, 5_000_000))
    first = json.dumps(draft.rows[0][0])
    texts: tuple[Callable[[], bytes], ...] = (
        lambda: nested(rng, depth).encode(),
        lambda: f'{{"__metadata__":{nested(rng, depth)},{text[1:]}'.encode(),
        lambda: text.replace(first, f"{nested(rng, 500)}", 1).encode(),
        lambda: text.encode("utf-16"),
        lambda: b"\xef\xbb\xbf" + text.encode(),
        lambda: text.encode().replace(b"lora_A", b"lora_\xff\xfe", 1),
        lambda: text.encode() + b"{}",
        lambda: b"[" + text.encode() + b"]",
        lambda: pick(rng, (b"null", b"", b"\0" * 64, b" " * 17_000_000)),
        lambda: b" " * 1000 + text.encode(),
        lambda: text.replace('"data_offsets"', '"data_offsets":[0,4],"data_offsets"', 1).encode(),
        lambda: text.replace("[0,", f"[{'9' * 6000},", 1).encode(),
        lambda: text.replace("}", ',"extra":1}', 1).encode(),
        lambda: many_keys(100_000, text),
    )
    draft.files[WEIGHTS] = draft.weights(header=pick(rng, texts)())
    return "header text"


def _values(rng: random.Random, draft: Draft) -> str:
    label = pick(rng, [*_BITS])
    word = struct.pack("<I", _BITS[label])
    count = len(draft.data) // 4
    if rng.random() < 0.3 or not count:
        draft.data = word * count
        return f"all {label}"
    content = bytearray(draft.data)
    for _ in range(pick(rng, (1, 1, 3, 500))):
        at = 4 * pick(rng, (0, count - 1, rng.randrange(count)))
        content[at : at + 4] = word
    draft.data = bytes(content)
    return f"some {label}"


def _size(rng: random.Random, draft: Draft) -> str:
    draft.data = pick(
        rng,
        (b"", draft.data[:-1], draft.data + b"\0", draft.data * 2, draft.data[4:], b"\0" * 3),
    )
    return f"{len(draft.data)} bytes of data"


def another(rng: random.Random, draft: Draft) -> str:
    """Healthy, with another content: finite values of its own."""
    content = bytearray(draft.data)
    for _ in range(64):
        at = 4 * rng.randrange(len(content) // 4)
        content[at : at + 4] = struct.pack("<f", rng.gauss(0, 1))
    draft.data = bytes(content)
    return "other values"


MUTATORS: tuple[Mutator, ...] = (
    _length, _cut, _flips, _offsets, _dtype, _shape, _name, _rows, _metadata, _text, _values,
    _values, _size,
)  # fmt: skip
