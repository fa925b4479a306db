"""Why an engine did not start: the first error of any of its processes, in one sentence."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import BaseModel, model_validator

from stacked.engine.causes import Causes, listen, missing_package, sentence
from tests.engine.releases import since

VLLM = logging.getLogger("vllm.v1.engine.core")


def fail(message: str, kind: type[Exception] = ValueError) -> None:
    try:
        raise kind(message)
    except kind:
        VLLM.exception("EngineCore failed to start.")


def child(message: str) -> None:
    listen()
    listen()
    fail(message)


def in_a_child(message: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=child, args=(message,))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_the_first_error_of_any_process_is_told() -> None:
    causes = Causes()
    with causes:
        in_a_child("GPT2LMHeadModel does not support LoRA yet.\nmore\n")
        in_a_child("what came of it")
        fail("Engine core initialization failed")
    assert causes.first() == "GPT2LMHeadModel does not support LoRA yet."
    causes.close()
    assert causes.first() is None


def test_what_is_no_failure_of_this_start_is_not_told() -> None:
    causes = Causes()
    with causes:
        VLLM.error("an error without an exception")
        VLLM.warning("passed over", exc_info=ValueError("passed over"))
        other = threading.Thread(target=fail, args=("of an engine that runs already",))
        other.start()
        other.join()
        logging.getLogger("another").error("elsewhere", exc_info=ValueError("elsewhere"))
    fail("too late")
    assert causes.first() is None
    causes.close()


def test_a_process_that_lives_on_writes_no_file_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    causes = Causes()
    monkeypatch.setenv("STACKED_START_ERRORS", str(causes._path))
    causes.close()
    causes.close()
    root = logging.getLogger("vllm")
    before = list(root.handlers)
    listen()
    try:
        fail("an error of a request, days later")
        assert not causes._path.exists()
    finally:
        root.handlers = before


def test_nobody_listens_where_no_start_asks_for_it() -> None:
    before = list(logging.getLogger("vllm").handlers)
    assert "STACKED_START_ERRORS" not in os.environ
    listen()
    assert logging.getLogger("vllm").handlers == before


class Config(BaseModel):
    tokens: int = 0

    @model_validator(mode="after")
    def refuse(self) -> Config:
        raise ValueError("head size 7 is not supported")


def raised(make: object) -> BaseException:
    try:
        make()  # type: ignore[operator]
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


def wrapped() -> None:
    try:
        raise ModuleNotFoundError("No module named 'x'", name="x")
    except ModuleNotFoundError as error:
        raise RuntimeError("the model cannot be inspected") from error


def subprocess_error() -> None:
    try:
        raise OSError("returned non-zero exit status 1")
    except OSError as error:
        text = "Traceback (most recent call last):\n  File …\nModuleNotFoundError: No module 'y'\n"
        raise RuntimeError(f"Error raised in subprocess:\n{text}") from error


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (Config, "head size 7 is not supported"),
        (lambda: Config(tokens="many"), "tokens: Input should be a valid integer"),  # type: ignore[arg-type]
        (wrapped, "ModuleNotFoundError: No module named 'x'"),
        (subprocess_error, "ModuleNotFoundError: No module 'y'"),
        (lambda: {}["conv_dim"], "KeyError: 'conv_dim'"),
        (lambda: (1).conv, "AttributeError: 'int' object has no attribute 'conv'"),
    ],
)
def test_an_exception_is_told_by_what_is_at_its_bottom(make: object, expected: str) -> None:
    assert sentence(raised(make)).startswith(expected)


def test_an_exception_without_a_message_is_told_by_its_type() -> None:
    assert sentence(AssertionError()) == "AssertionError"
    assert sentence(ValueError("first\nsecond")) == "first"


def test_a_missing_package_is_named_by_the_class_that_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    from vllm import ModelRegistry

    class Class:
        def load_model_cls(self) -> None:
            raise ModuleNotFoundError("No module named 'torchvision.io'", name="torchvision.io")

    monkeypatch.setitem(ModelRegistry.models, "Needy", Class())
    config = {"architectures": ["Unheard", "Needy"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    told = missing_package(str(tmp_path))
    assert told is not None
    assert told.startswith("Needy needs the Python package torchvision, which is not installed")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert missing_package(str(tmp_path)) is None


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
@since(0, 27, "its class of Qwen3.5 imports torchvision")
def test_qwen_3_5_names_the_package_that_a_set_up_leaves_out(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    config = {"architectures": ["Qwen3_5ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    told = missing_package(str(tmp_path))
    assert told is not None
    assert "Qwen3_5ForCausalLM needs the Python package torchvision" in told
