"""What the Open Inference Protocol lets in, and what it refuses."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.models import runtimes, tensors, worker
from stacked.models.tensors import DTYPES, Fault, Spec, answer, dump, parse, read, zeros

X = [Spec("x", "FP32", (-1, 2))]
GOOD = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


def body(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": [*inputs], **more}).encode()


def test_flat_and_nested_data_are_the_same() -> None:
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        found = read(body(GOOD | {"shape": [2, 2], "data": data}, id="a"), X)
        assert found.arrays["x"].tolist() == [[1, 2], [3, 4]]
        assert found.arrays["x"].dtype == np.float32
        assert (found.id, found.outputs) == ("a", [])


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"[]", "not an object"),
        (b"{}", '"inputs" is not a list'),
        (body(1), '"inputs" is not a list of objects'),
        (body(GOOD | {"name": 3}), "a list of objects"),
        (body(), r"the inputs are \[\]; this model has \['x'\]"),
        (body(GOOD | {"name": "y"}), r"the inputs are \['y'\]"),
        (body(GOOD, GOOD), "there twice"),
        (body(GOOD, outputs=[3]), '"outputs" is not a list'),
        (body(GOOD, id=3), '"id" is not a string'),
        (body(GOOD | {"datatype": "INT64"}), "expected FP32"),
        (body(GOOD | {"datatype": ["FP32"]}), "expected FP32"),
        (body(GOOD | {"shape": [1, 3]}), r"expected \[-1, 2\]"),
        (body(GOOD | {"shape": [2]}), r"expected \[-1, 2\]"),
        (body(GOOD | {"shape": [-1, 2]}), "not a list of sizes"),
        (body(GOOD | {"shape": [True, 2]}), "not a list of sizes"),
        (body(GOOD | {"shape": [10**30, 2]}), "2 values"),
        (body(GOOD | {"data": [1, 2, 3]}), "3 values"),
        (body(GOOD | {"data": [[1], [2, 3]]}), "unequal lengths"),
        (body(GOOD | {"data": [1, "2"]}), "values that are not FP32"),
        (body(GOOD | {"data": [1, None]}), "values that are not FP32"),
        (body(GOOD | {"data": [1, {"a": 2}]}), "values that are not FP32"),
        (body(GOOD | {"data": [1, 1e39]}), "out of the range of FP32"),
        (body(GOOD | {"data": [1, 10**400]}), "values that are not FP32"),
        (body({"name": "x", "shape": [1, 2], "datatype": "FP32"}), "binary tensor data"),
    ],
)
def test_wrong_requests_are_refused_with_what_is_wrong(sent: bytes, why: str) -> None:
    with pytest.raises(Fault, match=why) as refused:
        read(sent, X)
    assert refused.value.code == "ParameterInvalid"


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT64", [1.0]),
        ("INT64", [True]),
        ("INT64", [2**63]),
        ("UINT8", [256]),
        ("UINT8", [-1]),
        ("UINT64", [2**64]),
        ("UINT64", [1.5]),
        ("INT8", [-129]),
        ("FP16", [70000]),
        ("BOOL", [1]),
        ("BYTES", [1]),
        ("BYTES", [None]),
        ("DATE", ["today"]),
    ],
)
def test_no_value_is_changed_to_fit(datatype: str, data: list[Any]) -> None:
    item = {"name": "x", "shape": [1], "datatype": datatype, "data": data}
    with pytest.raises(Fault):
        read(body(item), [Spec("x")])


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": NaN}', b"\xff", b"[" * 100_000, b"Infinity"])
def test_what_is_not_json_is_said_so(text: bytes) -> None:
    with pytest.raises(Fault) as refused:
        parse(text)
    assert refused.value.code == "BodyInvalid"


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=5))
def test_floats_come_back_as_they_were_sent(data: list[float]) -> None:
    item = {"name": "x", "shape": [len(data)], "datatype": "FP32", "data": data}
    arrays = read(body(item), [Spec("x")]).arrays
    assert json.loads(answer("m", "1", None, arrays))["outputs"][0]["data"] == data


@given(st.sampled_from([*DTYPES]), st.lists(st.integers(-(2**70), 2**70), max_size=4))
def test_integers_come_back_or_are_refused(datatype: str, data: list[int]) -> None:
    item = {"name": "x", "shape": [len(data)], "datatype": datatype, "data": data}
    try:
        arrays = read(body(item), [Spec("x")]).arrays
    except Fault:
        return
    found = json.loads(answer("m", "1", None, arrays))["outputs"][0]["data"]
    assert all(math.isclose(a, b, rel_tol=1e-2) for a, b in zip(found, data, strict=True))
    assert found == data or datatype.startswith("FP")


def test_answers_that_json_cannot_carry_are_faults() -> None:
    for value in (float("nan"), float("inf"), {1}, {"a": object()}, {(1, 2): 3}):
        with pytest.raises(Fault) as refused:
            dump(value)
        assert refused.value.code == "ModelAnswerInvalid"
    with pytest.raises(Fault, match="output 'y' has NaN or infinity"):
        answer("m", "1", None, {"y": np.float32([1, np.inf])})
    assert json.loads(answer("m", "1", None, {"y": np.array([b"a", "b"], object)})) == {
        "model_name": "m",
        "model_version": "1",
        "outputs": [{"name": "y", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}],
    }


def test_zeros_have_one_of_each_open_size_and_need_to_know_the_shape() -> None:
    found = zeros([Spec("a", "INT8", (-1, 2)), Spec("b", "BYTES", ())])
    assert found is not None
    assert (found["a"].tolist(), found["b"].tolist()) == ([[0, 0]], "")
    assert zeros([*X, Spec("y")]) is None


@pytest.mark.parametrize("module", [runtimes, tensors, worker])
def test_what_workers_run_is_python_of_3_8_and_its_standard_library(module: Any) -> None:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    top = [each for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom)]
    names = {name.name for each in top if isinstance(each, ast.Import) for name in each.names}
    names |= {each.module or "" for each in top if isinstance(each, ast.ImportFrom)}
    libraries = {"numpy", "onnxruntime", "openvino", "torch", "psutil", "stacked"}
    assert not {name for name in names if name in libraries}
    ours = {name for name in names if name.startswith("stacked.")}
    assert {"stacked.models." in f"{name}." for name in ours} <= {True}
