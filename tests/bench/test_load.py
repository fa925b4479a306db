"""Commands and load descriptions: what vLLM's benchmark and vLLM's server are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stacked.bench.children import child, end, ended_by_signals, talking
from stacked.bench.load import FIGURES, Lengths, Load, checked, loads_of, words
from stacked.bench.server import flags, ours, peer_environment, running, theirs
from stacked.config import load as load_config
from stacked.errors import EngineStartFailed, ParameterInvalid

LENGTHS = Lengths(prompt=32, output=16)


def value(said: list[str], flag: str) -> str:
    return said[said.index(flag) + 1]


def test_clients_are_a_limit_and_rates_are_arrivals() -> None:
    clients = words("http://x", Path("/b"), ["a0", "a1"], Load(16, 0.0, 64), LENGTHS)
    assert value(clients, "--max-concurrency") == "16"
    assert value(clients, "--num-prompts") == "64"
    assert value(clients, "--random-output-len") == "16"
    assert clients[clients.index("--lora-modules") + 1 :][:2] == ["a0", "a1"]
    assert "--request-rate" not in clients
    assert value(clients, "--seed") == "0"
    again = words("http://x", Path("/b"), ["a0"], Load(16, 0.0, 64), LENGTHS, seed=7)
    assert value(again, "--seed") == "7"
    rate = words("http://x", Path("/b"), [], Load(0, 2.5, 10), LENGTHS)
    assert value(rate, "--request-rate") == "2.5"
    assert "--max-concurrency" not in rate
    assert "--lora-modules" not in rate


def test_loads_are_read_from_what_is_typed() -> None:
    loads = loads_of("1,16", "2.5", requests=4)
    assert loads == [Load(1, 0.0, 4), Load(16, 0.0, 64), Load(0, 2.5, 20)]
    assert [load.name for load in loads] == ["1 clients", "16 clients", "2.5 requests/s"]


@pytest.mark.parametrize(("clients", "rates"), [("", ""), ("x", ""), ("0", ""), ("1", "fast")])
def test_what_is_no_load_is_refused(clients: str, rates: str) -> None:
    with pytest.raises(ParameterInvalid):
        loads_of(clients, rates, requests=4)


def test_run_with_a_failed_request_is_no_measurement() -> None:
    told = dict.fromkeys(FIGURES, 1.5) | {"completed": 64}
    assert checked(told, Load(16, 0.0, 64)) == dict.fromkeys(FIGURES, 1.5)
    with pytest.raises(ParameterInvalid, match="1 of 64 requests failed"):
        checked(told | {"completed": 63}, Load(16, 0.0, 64))


def test_settings_are_said_as_vllm_reads_them() -> None:
    options = {
        "max_loras": 4,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "rope_scaling": {"factor": 2},
        "middleware": ["a", "b"],
        "seed": None,
    }
    assert flags(options) == [
        "--max-loras=4",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--rope-scaling",
        '{"factor": 2}',
        "--middleware",
        "a",
        "b",
    ]


def test_peer_is_vllm_alone_with_the_same_adapters() -> None:
    command = theirs(Path("/base"), {"max_loras": 2}, {"a0": Path("/x"), "a1": Path("/y")})
    assert value(command, "--model") == "/base"
    assert command[command.index("--lora-modules") + 1 :] == ["a0=/x", "a1=/y"]
    assert "--enable-lora" in command
    assert peer_environment()["STACKED_CPU_LORA"] == "0"
    assert peer_environment()["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "0"
    assert peer_environment(True)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_our_server_is_told_by_a_config_that_is_one(tmp_path: Path) -> None:
    tree = {"base": {"model": "/base"}, "engine": {"max_loras": 2}}
    command = ours(tree, tmp_path, tmp_path / "data")
    assert load_config(Path(command[command.index("serve") + 1])).engine == {"max_loras": 2}
    assert value(command, "--data-dir") == str(tmp_path / "data")


# -- children -------------------------------------------------------------------------------

_ECHO = "import sys\nfor line in sys.stdin: sys.stdout.write(line); sys.stdout.flush()"


def alive(process: int) -> bool:
    """Whether it runs; one that has ended may wait for its new parent to look."""
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def test_child_answers_and_ends_with_its_block(tmp_path: Path) -> None:
    with talking([sys.executable, "-c", _ECHO], tmp_path / "log", "the echo") as talk:
        assert talk.ask({"a": 1}) == {"a": 1}
        assert talk.ask({"b": [2]}) == {"b": [2]}
        process = talk._process
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ('print(\'{"error": "no room"}\')', "the engine: no room"),
        ("import sys; sys.exit('it broke')", "it broke"),
        ("pass", "ended without a word"),
    ],
)
def test_child_that_fails_is_told_with_its_words(code: str, said: str, tmp_path: Path) -> None:
    with (
        pytest.raises(EngineStartFailed, match=said),
        talking([sys.executable, "-c", code], tmp_path / "log", "the engine") as talk,
    ):
        talk.ask({})


def test_child_and_what_it_started_end_when_the_block_is_left_by_a_signal() -> None:
    code = (
        "import subprocess, sys, time\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(inner.pid, flush=True); time.sleep(600)"
    )
    process: subprocess.Popen[bytes] | None = None
    inner = 0
    try:
        with child([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            inner = int(process.stdout.readline())
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert process is not None
    assert process.poll() is not None
    end(process)  # a second time does nothing
    until = time.monotonic() + 10
    while alive(inner) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(inner)


def test_sigterm_unwinds_blocks() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def terminated() -> None:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()

    with pytest.raises(SystemExit) as left:
        terminated()
    assert left.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_server_that_ends_is_told_with_what_it_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such base')"]
    with pytest.raises(EngineStartFailed, match="no such base"), running(command, tmp_path):
        pass
