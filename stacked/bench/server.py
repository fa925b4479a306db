"""Servers of the benchmark's own on loopback: `stacked serve`, and vLLM's server to compare with.

Each is a process with a directory for itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import yaml

from stacked.bench.children import child, free_port, last_words
from stacked.bench.subject import Subject
from stacked.client import credential
from stacked.errors import EngineStartFailed

OURS, PEER = "stacked", "vllm"
SIDES = {OURS: "Stacked", PEER: "vLLM's server"}

_START_SECONDS = 1800.0
_LOOK_SECONDS = 0.05

# vLLM's engine gets the same environment as ours, but its own kernels.
_PEER = {
    "STACKED_CPU_LORA": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


def serve(
    side: str, subject: Subject, directory: Path, data_dir: Path, *, loading: bool = False
) -> AbstractContextManager[str]:
    """Either server over the same base, adapters and settings, until the block ends; its URL.

    `loading`: adapters can be loaded while it runs; vLLM's then begins with the first alone. Raises
    EngineStartFailed with what the server printed if it does not become healthy.
    """
    if side == PEER:
        members = dict(islice(subject.members.items(), 1 if loading else None))
        return running(
            theirs(subject.base, subject.options(), members), directory, peer_environment(loading)
        )
    tree = subject.tree(subject.options())
    if loading:
        roots = sorted({str(path.parent) for path in subject.adapters})
        tree["server"] = {"runtime_updates": True, "adapter_roots": roots}
    return serving(tree, directory, data_dir)


def serving(
    tree: Mapping[str, Any], directory: Path, data_dir: Path
) -> AbstractContextManager[str]:
    """The same for a config's tree, served by Stacked."""
    return running(ours(tree, directory, data_dir), directory)


def ours(tree: Mapping[str, Any], directory: Path, data_dir: Path) -> list[str]:
    """The command that serves a config's tree; the port follows it."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(dict(tree)), encoding="utf-8")
    command = [sys.executable, "-m", "stacked", "serve", str(config)]
    return [*command, "--data-dir", str(data_dir), "--host", "127.0.0.1"]


def theirs(base: Path, options: Mapping[str, Any], members: Mapping[str, Path]) -> list[str]:
    """The command of vLLM's server; by its module, as the CPU build's `vllm` does not start.

    Neither server writes a log line per request.
    """
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(base), "--served-model-name", "base", "--host", "127.0.0.1"]
    command += ["--disable-uvicorn-access-log", "--enable-lora", *flags(options)]
    modules = [f"{key}={path}" for key, path in members.items()]
    return [*command, "--lora-modules", *modules] if modules else command


def peer_environment(loading: bool = False) -> dict[str, str]:
    """The environment of vLLM's server; `loading` opens its `/v1/load_lora_adapter`."""
    return {**_PEER, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": str(int(loading))}


def flags(options: Mapping[str, Any]) -> list[str]:
    """Options by vLLM's names as arguments of its command line."""
    words: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, Mapping):
            words += [f"--{flag}", json.dumps(value)]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [f"--{flag}", *map(str, value)]
        elif value is not None:
            words.append(f"--{flag}={value}")
    return words


def sides_of(peer: bool) -> dict[str, str]:
    """Our server, and vLLM's if it is a `peer`, with their names."""
    return SIDES if peer else {OURS: SIDES[OURS]}


@contextmanager
def running(
    command: Sequence[str], directory: Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run a server's command on a free port until the block ends; its URL once it is healthy."""
    directory.mkdir(parents=True, exist_ok=True)
    terminal, port = directory / "terminal.txt", free_port()
    url = f"http://127.0.0.1:{port}"
    command = [*command, "--port", str(port)]
    with (
        terminal.open("wb") as output,
        child(command, stdout=output, stderr=output, environment=environment) as process,
    ):
        _wait_until_healthy(url, process, terminal)
        yield url


def counted(url: str, name: str) -> float:
    """One of the server's counters, summed over its labels; 0 where there is none."""
    lines = httpx.get(f"{url}/metrics", timeout=30, auth=credential()).text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} "))
    )


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], terminal: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with httpx.Client(timeout=5) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get(f"{url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(_LOOK_SECONDS)  # a server that starts has no event to wait for
    raise EngineStartFailed(f"the benchmark's server did not start:\n{last_words(terminal)}")
