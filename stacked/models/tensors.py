"""The Open Inference Protocol V2: JSON to arrays, and arrays to JSON.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
DTYPES = {
    name.upper().replace("FLOAT", "FP"): name
    for name in ("bool", "float16", "float32", "float64", *_INTEGERS)
}
"""numpy's types, by their names in the protocol."""
DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}
# The kinds of numpy arrays that JSON numbers of a datatype may become: no integer is rounded.
_KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}


class Fault(Exception):
    """A call that fails. `code` is the name of a class in stacked/errors.py."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Spec(NamedTuple):
    """An input or output of a model; -1 is a dimension of any size, "" and None are unknown."""

    name: str
    datatype: str = ""
    shape: tuple[int, ...] | None = None

    def described(self) -> dict[str, Any]:
        datatype, shape = self.datatype or "UNKNOWN", [-1] if self.shape is None else self.shape
        return {"name": self.name, "datatype": datatype, "shape": [*shape]}


class Request(NamedTuple):
    """What a client asks: arrays by input, and the outputs that it wants, [] for all."""

    id: str | None
    arrays: dict[str, Any]
    outputs: list[str]


def parse(body: bytes) -> Any:
    """A JSON value. Raises Fault, also for the NaN that Python's json reads."""
    try:
        return json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Fault("BodyInvalid", f"the body is not valid JSON: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no {constant}")


def dump(value: Any) -> bytes:
    """`value` as JSON. Raises Fault if JSON cannot carry it."""
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Fault("ModelAnswerInvalid", f"the model's answer is not JSON: {error}") from None


def read(body: bytes, specs: list[Spec]) -> Request:
    """A request for a model with these inputs. Raises Fault."""
    request = parse(body)
    if not isinstance(request, dict):
        raise _wrong('the body is not an object with "inputs"')
    found: dict[str, Any] = {}
    for item in _items(request, "inputs"):
        if item["name"] in found:
            raise _wrong(f"input {item['name']!r} is there twice")
        found[item["name"]] = item
    expected = {spec.name: spec for spec in specs}
    if found.keys() != expected.keys():
        raise _wrong(f"the inputs are {[*found]}; this model has {[*expected]}")
    arrays = {name: _array(expected[name], item) for name, item in found.items()}
    outputs = [item["name"] for item in _items(request, "outputs")] if "outputs" in request else []
    id = request.get("id")
    if id is not None and not isinstance(id, str):
        raise _wrong('"id" is not a string')
    return Request(id, arrays, outputs)


def zeros(specs: list[Spec]) -> dict[str, Any] | None:
    """The smallest input of these specs, None if one is unknown."""
    import numpy as np

    found = {}
    for name, datatype, shape in specs:
        if shape is None or not datatype:
            return None
        fixed = [1 if size < 0 else size for size in shape]
        of_text = datatype == "BYTES"
        found[name] = np.full(fixed, "", object) if of_text else np.zeros(fixed, DTYPES[datatype])
    return found


def answer(name: str, version: str, id: str | None, outputs: dict[str, Any]) -> bytes:
    """The answer of a model, from its arrays. Raises Fault for NaN and infinity."""
    head = {"model_name": name, "model_version": version}
    rows = [_described(output, array) for output, array in outputs.items()]
    return dump({**head, **({} if id is None else {"id": id}), "outputs": rows})


def _items(request: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = request.get(key)
    if isinstance(items, list):
        named = (isinstance(each, dict) and isinstance(each.get("name"), str) for each in items)
        if all(named):
            return items
    raise _wrong(f'"{key}" is not a list of objects that have a "name"')


def _array(spec: Spec, item: dict[str, Any]) -> Any:
    import numpy as np

    name, datatype, shape = item["name"], item.get("datatype"), item.get("shape")
    known = [spec.datatype] if spec.datatype else [*DTYPES, "BYTES"]
    if datatype not in known:
        raise _wrong(f"input {name!r}: datatype {datatype!r}; expected {', '.join(known)}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise _wrong(f"input {name!r}: shape {shape!r} is not a list of sizes")
    if spec.shape is not None and not _fits(shape, spec.shape):
        raise _wrong(f"input {name!r}: shape {shape}; expected {[*spec.shape]} (-1: any size)")
    if not isinstance(item.get("data"), list):
        raise _wrong(f'input {name!r}: "data" is not a list; binary tensor data is not supported')
    try:
        # Left to numpy, a list of large and small UINT64 would become rounded floats.
        found = np.array(item["data"], object if datatype in ("BYTES", "UINT64") else None)
    except ValueError:
        raise _wrong(f"input {name!r}: the lists in its data are of unequal lengths") from None
    if found.size != math.prod(shape):
        raise _wrong(f"input {name!r}: {found.size} values; shape {shape} has {math.prod(shape)}")
    return (_text if datatype == "BYTES" else _numbers)(name, datatype, found).reshape(shape)


def _fits(shape: list[int], expected: tuple[int, ...]) -> bool:
    pairs = zip(shape, expected)  # noqa: B905 - `strict` is newer than Python 3.8
    return len(shape) == len(expected) and all(want in (-1, size) for size, want in pairs)


def _text(name: str, _: str, found: Any) -> Any:
    if not all(isinstance(each, str) for each in found.flat):
        raise _wrong(f"input {name!r}: its data has other values than strings")
    return found


def _numbers(name: str, datatype: str, found: Any) -> Any:
    import numpy as np

    dtype = np.dtype(DTYPES[datatype])
    if datatype == "UINT64" and all(type(e) is int and 0 <= e < 2**64 for e in found.flat):
        return found.astype(dtype)
    if found.size and found.dtype.kind not in _KINDS[dtype.kind]:
        raise _wrong(f"input {name!r}: its data has values that are not {datatype}")
    with np.errstate(over="ignore"):
        array = found.astype(dtype)
    # Integers that wrapped around are others than before; floats that overflowed are infinite.
    good = np.isfinite(array).all() if dtype.kind == "f" else (array == found).all()
    if found.size and not good:
        raise _wrong(f"input {name!r}: its data has values out of the range of {datatype}")
    return array


def _described(name: str, array: Any) -> dict[str, Any]:
    import numpy as np

    array = np.asarray(array)
    datatype = DATATYPES.get(array.dtype.name, "BYTES")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Fault(
            "ModelAnswerInvalid", f"output {name!r} has NaN or infinity, which JSON has not"
        )
    data = array.ravel().tolist()
    if datatype == "BYTES":
        data = [each.decode() if isinstance(each, bytes) else str(each) for each in data]
    return {"name": name, "datatype": datatype, "shape": [*array.shape], "data": data}


def _wrong(sentence: str) -> Fault:
    return Fault("ParameterInvalid", sentence)
