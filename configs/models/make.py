"""Makes the two ONNX models of `configs/models.yaml` beside this file; needs numpy and onnx.

`python configs/models/make.py`
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent

Array = NDArray[np.float32]


def fahrenheit(random: np.random.Generator) -> tuple[Array, Array]:
    """Degrees Celsius to Fahrenheit: a line through noisy readings, by least squares."""
    celsius = random.uniform(-40, 50, 500)
    readings = celsius * 1.8 + 32 + random.normal(0, 0.5, 500)
    slope, offset = np.polyfit(celsius, readings, 1)
    return np.array([[slope]], np.float32), np.array([offset], np.float32)


def circle(random: np.random.Generator) -> list[Array]:
    """Whether a point lies in the unit circle: 16 hidden units, by gradient descent."""
    points = random.uniform(-2, 2, (4000, 2))
    inside = (np.square(points).sum(1) < 1).astype(float)[:, None]
    first, second = random.normal(0, 1, (2, 16)), random.normal(0, 0.3, (16, 1))
    b1, b2 = np.zeros(16), np.zeros(1)
    for _ in range(4000):
        hidden = np.tanh(points @ first + b1)
        chance = 1 / (1 + np.exp(-(hidden @ second + b2)))
        wrong = (chance - inside) / len(points)
        back = wrong @ second.T * (1 - hidden**2)
        second -= 5 * hidden.T @ wrong
        b2 -= 5 * wrong.sum(0)
        first -= 5 * points.T @ back
        b1 -= 5 * back.sum(0)
    return [each.astype(np.float32) for each in (first, b1, second, b2)]


def save(
    name: str, nodes: list[onnx.NodeProto], columns: int, output: str, weights: dict[str, Array]
) -> None:
    """Write a model of rows with so many numbers to one number each."""
    rows = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["rows", columns])
    found = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", 1])
    constants = [numpy_helper.from_array(array, each) for each, array in weights.items()]
    graph = helper.make_graph(nodes, name, [rows], [found], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, HERE / f"{name}.onnx")


def main() -> None:
    """Make both, always the same."""
    random = np.random.default_rng(7)
    slope, offset = fahrenheit(random)
    line = [helper.make_node("Gemm", ["input", "slope", "offset"], ["fahrenheit"])]
    save("fahrenheit", line, 1, "fahrenheit", {"slope": slope, "offset": offset})
    weights = dict(zip(("w1", "b1", "w2", "b2"), circle(random), strict=True))
    layers = [
        helper.make_node("Gemm", ["input", "w1", "b1"], ["a"]),
        helper.make_node("Tanh", ["a"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w2", "b2"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["inside"]),
    ]
    save("circle", layers, 2, "inside", weights)


if __name__ == "__main__":
    main()
