"""A walk of `tritonclient[http]`, which speaks the Open Inference Protocol, over served models.

Run by a Python that has it: `triton.py HOST:PORT KEY`. The model doubles an input `x` of FP32 and
shape [-1, 3] into `y`. The last line that is printed is what was seen, as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(place: str, key: str) -> None:
    import numpy as np
    from tritonclient import http
    from tritonclient.utils import InferenceServerException

    client = http.InferenceServerClient(place)

    def infer(name: str, **how: Any) -> Any:
        given = http.InferInput(name, [1, 3], "FP32")
        given.set_data_from_numpy(np.array([[1, 2, 3]], np.float32), **how)
        try:
            return client.infer(key, [given], request_id="7")
        except InferenceServerException as error:
            return error.status()

    answer = infer("x", binary_data=False)
    seen = {
        "server": [client.is_server_live(), client.is_server_ready()],
        "models": [client.is_model_ready(key), client.is_model_ready("none")],
        "metadata": client.get_model_metadata(key),
        "answer": [answer.as_numpy("y").tolist(), answer.get_response()["id"]],
        "refused": [infer("z", binary_data=False), infer("x", binary_data=True)],
    }
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
