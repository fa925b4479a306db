"""`model.py` of Triton's python backend for a model with a score.py; it runs in Triton alone.

A call is two texts, the type of the body and the body in base64; an answer is two as well, the code
of a failure and the body or the message. An error of Triton's so means that this process has ended.
"""

from __future__ import annotations

import base64
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

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(each) for each in requests]

    def _answer(self, request: Any) -> Any:
        call = runtimes.Call()
        kind, body = triton.get_input_tensor_by_name(request, "call").as_numpy()
        fault, answer = b"", b""
        try:
            answer = self.model.answer(base64.b64decode(body), {"type": kind.decode()}, call)
        except BaseException as error:  # noqa: BLE001 - code of others, which may also call exit()
            said = worker.refusal(error, "answer", call)
            fault, answer = said["error"].encode(), said["message"].encode()
        both = np.array([fault, answer], dtype=object)
        return triton.InferenceResponse([triton.Tensor("answer", both)])

    def finalize(self) -> None:
        self.model.unload()
