"""What loads a model's files and answers with them; each library is imported where it is used.

What a function here raises is reported by `worker`: a Fault as what it is, the rest as the model's.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import threading
from functools import lru_cache
from typing import Any, Callable  # noqa: UP035 - Python 3.8

from stacked.models.tensors import DATATYPES, Fault, Spec, answer, dump, parse, read, zeros

_ONNX_TYPES = {"float": "FP32", "double": "FP64", "float16": "FP16", "string": "BYTES"}


class Call:
    """One call. `cancel` is called from another thread, at any moment."""

    def __init__(self, *, loads: bool = False) -> None:
        self.loads, self.cancelled = loads, False
        self.work: Any = None
        """The future of the thread that is to do it."""
        self._stop: Callable[[], object] = lambda: None

    def stop_with(self, stop: Callable[[], object]) -> None:
        """What ends it early, if that is possible."""
        self._stop = stop  # first, so that a `cancel` finds it, or is found here
        if self.cancelled:
            stop()

    def cancel(self) -> bool:
        """Whether it had not begun, and never will."""
        self.cancelled = True
        self._stop()
        return bool(self.work.cancel())


class Tensors:
    """A model of tensors. `run` gets arrays by input and returns arrays by output."""

    def __init__(
        self,
        inputs: list[Spec],
        outputs: list[Spec],
        run: Callable[[dict[str, Any], list[str], Call], dict[str, Any]],
    ) -> None:
        self.inputs, self.outputs, self._run = inputs, outputs, run

    def answer(self, body: bytes, head: dict[str, Any], call: Call) -> bytes:
        request = read(body, self.inputs)
        known = [spec.name for spec in self.outputs] or request.outputs
        wanted = request.outputs or known
        found = self._run(request.arrays, wanted if {*wanted} <= {*known} else [], call)
        if not {*wanted} <= {*found}:
            sentence = f"the outputs requested are {wanted}; this model has {[*found] or known}"
            raise Fault("ParameterInvalid", sentence)
        found = {name: found[name] for name in wanted or found}
        return answer(head["model"], head["version"], request.id, found)

    def try_zeros(self, call: Call) -> None:
        arrays = zeros(self.inputs)
        if arrays is not None:
            found = self._run(arrays, [spec.name for spec in self.outputs], call)
            answer("", "", None, found)

    def unload(self) -> None: ...


def onnx(path: str, threads: int) -> Tensors:
    ort = _onnxruntime(threads)
    options = ort.SessionOptions()
    options.log_severity_level, options.use_per_session_threads = 3, False
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(arrays: dict[str, Any], wanted: list[str], call: Call) -> dict[str, Any]:
        if not wanted:
            return {}
        options = ort.RunOptions()
        call.stop_with(lambda: setattr(options, "terminate", True))
        return dict(zip(wanted, session.run(wanted, arrays, options)))  # noqa: B905 - Python 3.8

    inputs = [_onnx_spec(each) for each in session.get_inputs()]
    return Tensors(inputs, [_onnx_spec(each) for each in session.get_outputs()], run)


@lru_cache(maxsize=1)
def _onnxruntime(threads: int) -> Any:
    import onnxruntime

    # One pool of threads for all sessions: 500 models have as many threads as one.
    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    return onnxruntime


def _onnx_spec(node: Any) -> Spec:
    kind, _, inner = node.type.partition("(")
    if kind != "tensor":
        hint = "export a scikit-learn model with zipmap=False"
        raise Fault("EngineLoadFailed", f"{node.name!r} is a {node.type}, not a tensor; {hint}")
    dtype = inner.rstrip(")")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return Spec(node.name, _ONNX_TYPES.get(dtype, dtype.upper()), shape)


def saved_model(path: str, threads: int) -> Tensors:
    core = _openvino()
    model = core.read_model(os.path.dirname(path))
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    turn = threading.Lock()
    inputs = [_openvino_spec(each) for each in model.inputs]
    outputs = [_openvino_spec(each) for each in model.outputs]

    def run(arrays: dict[str, Any], wanted: list[str], call: Call) -> dict[str, Any]:
        with turn:
            request.infer([arrays[spec.name] for spec in inputs])
            places = enumerate(outputs)
            return {s.name: request.get_output_tensor(i).data.copy() for i, s in places}

    return Tensors(inputs, outputs, run)


@lru_cache(maxsize=1)
def _openvino() -> Any:
    import openvino

    return openvino.Core()


def _openvino_spec(port: Any) -> Spec:
    # TensorFlow's names end in the number of an output of a node, which is 0 for all but a few.
    name = min(port.get_names(), key=lambda each: (len(each), each)).split(":")[0]
    dtype = port.get_element_type().to_dtype().name
    sizes = [size.get_length() if size.is_static else -1 for size in port.get_partial_shape()]
    return Spec(name, DATATYPES.get(dtype, "BYTES"), tuple(sizes))


def torch(path: str, threads: int) -> Tensors:
    import torch as library

    library.set_num_threads(threads)
    if path.endswith(".pt2"):
        program = library.export.load(path)
        module, inputs = program.module(), _exported(program)
    else:
        module = library.jit.load(path, map_location="cpu").eval()
        inputs = [Spec(each.name) for each in module.forward.schema.arguments[1:]]

    def run(arrays: dict[str, Any], wanted: list[str], call: Call) -> dict[str, Any]:
        if any(array.dtype.kind == "O" for array in arrays.values()):
            raise Fault("ParameterInvalid", "datatype BYTES: PyTorch has no tensors of strings")
        given = [library.from_numpy(arrays[spec.name]) for spec in inputs]
        with library.inference_mode():
            found = module(*given)
        if not isinstance(found, dict):  # names as Triton gives them
            several = found if isinstance(found, (list, tuple)) else [found]
            found = {f"OUTPUT__{at}": each for at, each in enumerate(several)}
        wide = {library.bfloat16: library.float32}
        return {str(k): t.detach().to(wide.get(t.dtype, t.dtype)).numpy() for k, t in found.items()}

    return Tensors(inputs, [], run)


def _exported(program: Any) -> list[Spec]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    specs = []
    for name in program.graph_signature.user_inputs:
        value = values[name]
        sizes = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        dtype = str(value.dtype).rpartition(".")[2]
        specs.append(Spec(name, DATATYPES.get(dtype, dtype.upper()), sizes))
    return specs


class Score:
    """A model that a score.py loads and answers with."""

    inputs: list[Spec] = []  # noqa: RUF012 - never changed
    outputs = inputs

    def __init__(self, code: Any, folder: str) -> None:
        self._code = code
        load = getattr(code, "load_model", None)
        given = [folder] if load and _takes_folder(load) else []
        self._model = load(*given) if load else None
        takes = inspect.signature(code.predict).parameters
        several = any(each.kind is each.VAR_KEYWORD for each in takes.values())
        self._named = {"model": self._model} if several or "model" in takes else {}

    def answer(self, body: bytes, head: dict[str, Any], call: Call) -> bytes:
        kind = head["type"].partition(";")[0].strip().lower()
        # What a plain `curl -d` calls a form is JSON too.
        is_json = kind in ("", "application/json", "application/x-www-form-urlencoded")
        data = parse(body) if is_json else body
        return dump(self._code.predict(data, **self._named))

    def try_zeros(self, call: Call) -> None:
        """Nothing is known of what it takes."""

    def unload(self) -> None:
        hook = getattr(self._code, "unload_model", None)
        if hook:
            hook(*([self._model] if inspect.signature(hook).parameters else []))


def score(path: str, code: str) -> Score:
    return Score(_imported(code), path)


@lru_cache(maxsize=1)
def _imported(folder: str) -> Any:
    if folder not in sys.path:
        sys.path.insert(0, folder)  # for the modules beside it, which pickles need
    spec = importlib.util.spec_from_file_location("score", os.path.join(folder, "score.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["score"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _takes_folder(load: Any) -> bool:
    """Not a score.py for one model: its one parameter is optional, the name of a file beside it."""
    first = next(iter(inspect.signature(load).parameters.values()), None)
    if first is None or first.kind is first.KEYWORD_ONLY:
        return False
    return first.default is first.empty or "folder" in first.name or "dir" in first.name


def load(runtime: str, path: str, code: str, threads: int) -> Tensors | Score:
    """Load a model. Raises Fault, and whatever its library or its code does."""
    if runtime in ("score", "data"):
        return score(path, code)
    return {"onnx": onnx, "savedmodel": saved_model, "torch": torch}[runtime](path, threads)
