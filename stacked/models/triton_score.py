"""`model.py` of Triton's python backend for a model with a score.py; it runs in Triton alone.

A failure is an answer with a code, so that an error of Triton's means that this process has ended.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # type: ignore[import-not-found]

HERE = os.path.dirname(os.path.abspath(__file__))
package = sys.modules["stacked"] = types.ModuleType("stacked")
package.__path__ = [os.path.join(HERE, "stacked")]

from stacked.models import runtimes, worker  # noqa: E402


class TritonPythonModel:
    """One model, as Triton calls it: one request after the other."""

    def initialize(self, args: dict[str, str]) -> None:
        folder, code = os.path.join(HERE, "model"), os.path.join(HERE, "code")
        code = code if os.path.isdir(code) else folder
        self.model = runtimes.load("score", folder, code, 1)
        runtimes.try_out(self.model, folder, {"type": ""}, runtimes.Call())

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(each) for each in requests]

    def _answer(self, request: Any) -> Any:
        call = runtimes.Call()
        kind, body = triton.get_input_tensor_by_name(request, "call").as_numpy()
        fault, answer = b"", b""
        try:
            answer = self.model.answer(body, {"type": kind.decode()}, call)
        except BaseException as error:  # noqa: BLE001 - code of others, which may also call exit()
            said = worker.refusal(error, "answer", call)
            fault, answer = said["error"].encode(), said["message"].encode()
        both = np.array([fault, answer], dtype=object)
        return triton.InferenceResponse([triton.Tensor("answer", both)])

    def finalize(self) -> None:
        self.model.unload()
