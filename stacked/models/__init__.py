"""Models of any framework, served from worker processes: ONNX, SavedModel, TorchScript, score.py.

`worker`, `runtimes` and `tensors` run in these processes, under any Python from 3.8 on; they import
nothing of this package but each other.
"""
