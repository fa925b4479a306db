"""The `stacked` command as a process of its own: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from stacked import __version__
from stacked.cli import app
from stacked.config import ControlConfig
from stacked.engine.adaptable import Asking
from stacked.store import BaseModules
from stacked.store.adaptable import Adaptable
from tests.serving import Server, free_port
from tests.store.small import HIDDEN, VOCABULARY, Weights, write_adapter, write_base, write_json
from tests.wire import Wire, wire

ROOT = Path(__file__).parent.parent
COMMANDS = ("serve", "prepare", "check", "predict", "models", "doctor", "version")
HEAVY = {"torch", "vllm", "transformers", "fastapi", "numpy", "huggingface_hub", "peft"}


def run(
    *arguments: str, cwd: Path | None = None, said: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m stacked …`, with no settings of this process's own."""
    kept = {name: value for name, value in os.environ.items() if name not in CLEARED}
    return subprocess.run(
        [sys.executable, "-m", "stacked", *arguments],
        capture_output=True,
        text=True,
        input=said,
        cwd=cwd or ROOT,
        env={**kept, "COLUMNS": "200", **environ},
        timeout=120,
        check=False,
    )


def within(*arguments: str) -> Result:
    """The same in this process, for what ends before any work: a tenth of the time."""
    environ = {**dict.fromkeys(CLEARED, ""), "COLUMNS": "200"}
    return CliRunner().invoke(app, list(arguments), prog_name="stacked", env=environ)


CLEARED = {"STACKED_URL", "MODEL", "PARAMS", "STACKED_MODEL_DIR"}


@pytest.fixture
def told() -> Iterator[Wire]:
    with wire() as one:
        yield one


# --- help ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_names_every_command(arguments: list[str]) -> None:
    done = within(*arguments)
    assert all(f" {command} " in done.stdout for command in COMMANDS)
    assert "stacked serve configs/demo.yaml" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    done = within(command, "--help")
    assert done.exit_code == 0
    assert f"stacked {command}" in done.stdout


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_the_version(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.stdout, done.returncode) == (f"stacked {__version__}\n", 0)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["predict", "hi", "--url", "{url}"], ["models", "--url", "{url}"]]
)
def test_client_commands_import_nothing_heavy(arguments: list[str], told: Wire) -> None:
    told.answer = {"data": [], "choices": [{"text": "hello"}]}
    program = (
        "import sys, stacked.cli\n"
        f"sys.argv = ['stacked', *{[each.format(url=told.url) for each in arguments]!r}]\n"
        "try:\n    stacked.cli.main()\n"
        "except SystemExit as done:\n    assert done.code == 0\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert not HEAVY & set(done.stderr.split())


# --- wrong usage ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["check", "somewhere"],
        ["predict"],
        ["predict", "hi", "--max-tokens", "0"],
        ["predict", "hi", "--completion", "--system", "be brief"],
        ["serve", "configs/demo.yaml", "--port", "70000"],
    ],
)
def test_wrong_usage_is_told_with_exit_code_2(arguments: list[str]) -> None:
    done = within(*arguments)
    assert done.exit_code == 2
    assert "Usage:" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("text", [None, "server: {drain_seconds: 7}"])
def test_serve_without_a_base_begins_with_the_control_plane_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    seen: list[ControlConfig] = []

    def serve(config: ControlConfig, **_: object) -> int:
        seen.append(config)
        return 0

    monkeypatch.setattr("stacked.api.server.run", serve)
    given = []
    if text is not None:
        path = tmp_path / "control.yaml"
        path.write_text(text, encoding="utf-8")
        given = [str(path)]
    assert within("serve", *given, "--port", "9000").exit_code == 0
    assert [type(config) for config in seen] == [ControlConfig]
    assert seen[0].server.port == 9000
    assert seen[0].server.drain_seconds == (7 if text else 300)


def test_serve_refuses_a_wrong_file_in_one_line_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("base: {modle: m}", encoding="utf-8")
    done = run("serve", str(path))
    assert done.returncode == 1
    first = done.stderr.splitlines()[0]
    assert first.startswith(f"error [ConfigInvalid]: {path}: base.")
    assert "Traceback" not in done.stderr


def test_serve_refuses_a_wrong_environment_by_the_name_of_the_variable(tmp_path: Path) -> None:
    done = run("serve", STACKED_MODEL_DIR=str(tmp_path), MODEL="org/name", PORT="web")
    assert (done.returncode, done.stderr.split(":")[0]) == (1, "error [ConfigInvalid]")
    assert "PORT: expected a port" in done.stderr


# --- prepare and check ---------------------------------------------------------------------


def test_prepare_of_an_unknown_name_is_refused(tmp_path: Path) -> None:
    done = run("prepare", "smollm2", "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error [BaseNotFound]: ")


def test_prepare_of_what_is_there_prints_its_directory(tmp_path: Path) -> None:
    base = write_base(tmp_path / "bases" / "smollm2-135m-instruct")
    done = run("prepare", "smollm2-135m-instruct", "--data-dir", str(tmp_path))
    assert (done.returncode, done.stdout.strip()) == (0, str(base))


def asked_before(base: Path, data: Path) -> None:
    """As if an engine of this base had run: all its layers can be adapted, and nothing else."""
    modules = {n: s for n, s in BaseModules.read(base).modules.items() if "layers" in n}
    asking = Asking(base, {}, data / "store" / "engine")
    asking.learn(Adaptable("SmallForCausalLM", modules))


def test_check_says_what_an_adapter_is(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    asked_before(base, tmp_path / "data")
    done = run("check", str(adapter), "--base", str(base), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if "  " in line)
    assert rows["digest"].startswith("sha256:")
    assert rows["rank"].strip() == "4"
    assert rows["modules"].startswith("6 (")
    assert "can be served" in done.stdout


def test_check_says_why_not_by_code_and_sentence(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").write_bytes(b"cut")
    arguments = ["check", str(adapter), "--base", str(base), "--data-dir", str(tmp_path / "data")]
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error [WeightsInvalid]: ")
    assert done.stdout == ""


def test_check_refuses_what_vllm_would_pass_over(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=False)
    head: Weights = {
        "base_model.model.lm_head.lora_A.weight": np.ones((4, HIDDEN), np.float32),
        "base_model.model.lm_head.lora_B.weight": np.ones((VOCABULARY, 4), np.float32),
    }
    adapter = write_adapter(tmp_path / "adapter", head, target_modules=["lm_head"])
    asked_before(base, tmp_path / "data")
    done = run("check", str(adapter), "--base", str(base), "--data-dir", str(tmp_path / "data"))
    assert done.stderr.startswith("error [ModuleUnapplied]: 1 of 1 adapted modules")
    assert "SmallForCausalLM" in done.stderr


def test_check_tells_of_a_base_that_vllm_cannot_serve(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    write_json(base / "config.json", {"architectures": ["NoneForCausalLM"], "model_type": "none"})
    done = run("check", str(adapter), "--base", str(base), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 1
    assert "error [BaseUnsupported]: " in done.stderr
    assert "model type `none`" in done.stderr


def test_check_tells_of_the_template_and_the_tokens_that_came_along(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    asked_before(base, tmp_path / "data")
    arguments = ["check", str(adapter), "--base", str(base), "--data-dir", str(tmp_path / "data")]
    for directory, text in ((base, "{{ messages }}"), (adapter, "{{ messages | length }}")):
        write_json(directory / "tokenizer_config.json", {"chat_template": text})
    done = run(*arguments)
    assert "template    its own" in done.stdout
    write_json(adapter / "added_tokens.json", {"<|think|>": 40})
    refused = run(*arguments)
    assert refused.stderr.startswith("error [TokensDiffer]: ")
    assert "'<|think|>' (40)" in refused.stderr
    accepted = run(*arguments, "--foreign-tokens")
    assert accepted.returncode == 0
    assert "They are lost" in accepted.stderr


def test_check_refuses_a_rank_above_the_one_given(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    arguments = ["check", str(adapter), "--base", str(base), "--data-dir", str(tmp_path / "data")]
    assert run(*arguments, "--max-rank", "2").stderr.startswith("error [RankRefused]: ")


# --- predict and models --------------------------------------------------------------------


def test_predict_sends_a_message_and_prints_the_answer(told: Wire) -> None:
    told.answer = {"choices": [{"message": {"content": "[bold] Arr"}}]}
    done = run("predict", "-k", "pirate", "Hello", "--url", told.url, "--system", "Be brief")
    assert (done.stdout, done.stderr, done.returncode) == ("[bold] Arr\n", "", 0)
    assert (told.path, told.key) == ("/predict", "pirate")
    assert told.body == {
        "max_tokens": 128,
        "temperature": 0,
        "messages": [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "Hello"},
        ],
    }


def test_predict_reads_standard_input_and_may_send_it_as_it_is(told: Wire) -> None:
    told.answer = {"choices": [{"text": "SELECT 1"}]}
    done = run("predict", "-", "--completion", said="one\ntwo", STACKED_URL=told.url)
    assert done.stdout == "SELECT 1\n"
    assert told.body["prompt"] == "one\ntwo"
    assert "messages" not in told.body


def test_predict_streams_as_it_comes(told: Wire) -> None:
    told.answer = [{"choices": [{"delta": {"content": word}}]} for word in ("A", "hoy")] + [
        "[DONE]"
    ]
    done = run("predict", "Hello", "--stream", "--url", told.url)
    assert (done.stdout, done.returncode) == ("Ahoy\n", 0)
    assert told.body["stream"] is True


def test_predict_prints_the_whole_answer_as_json(told: Wire) -> None:
    told.answer = {"model": "sql", "choices": [{"text": "x"}]}
    assert json.loads(run("predict", "Hello", "--json", "--url", told.url).stdout) == told.answer


def test_a_refusal_of_the_server_is_one_line(told: Wire) -> None:
    told.status, told.answer = 404, {"code": "KeyUnknown", "message": "no key 'x' here"}
    done = run("predict", "-k", "x", "Hello", "--url", told.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error [KeyUnknown]: no key 'x' here\n"


@pytest.mark.parametrize("command", [["predict", "Hello"], ["models"]])
def test_no_server_says_how_to_start_one(command: list[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run(*command, "--url", url)
    assert done.returncode == 1
    assert f"no server at {url}; start one with: stacked serve" in done.stderr


def test_models_is_a_table(told: Wire) -> None:
    told.answer = {"data": [{"id": "sql", "root": "sha256:" + "a" * 64, "rank": 8}, {"id": "base"}]}
    header, sql, base = run("models", "--url", told.url).stdout.splitlines()
    assert header.split() == ["key", "digest", "rank"]
    assert sql.split() == ["sql", "sha256:aaaaaaaaaaaa", "8"]
    assert base.split() == ["base"]


def test_ctrl_c_ends_a_command_with_130(told: Wire) -> None:
    told.may_answer.clear()
    with subprocess.Popen(
        [sys.executable, "-m", "stacked", "predict", "Hello", "--url", told.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert told.asked.wait(timeout=60)
        process.send_signal(signal.SIGINT)
        answer, said = process.communicate(timeout=60)
    assert (process.returncode, answer, said.strip()) == (130, "", "")


def test_doctor_tells_and_exits_by_what_it_found(tmp_path: Path) -> None:
    done = run("doctor", "--port", str(free_port()), "--data-dir", str(tmp_path))
    assert done.returncode == (1 if "✗" in done.stdout else 0)
    for name in ("python", "cpu", "memory", "gpu", "vllm", "torch", "disk", "port"):
        assert f" {name}" in done.stdout


# --- the real server -----------------------------------------------------------------------


@pytest.mark.engine
def test_predict_and_models_against_a_real_server(server: Server) -> None:
    listed = run("models", "--url", server.url)
    assert listed.returncode == 0, listed.stderr
    assert {"base", "a", "b", "c"} <= {line.split()[0] for line in listed.stdout.splitlines()}
    arguments = ["predict", "-k", "a", "The quick", "--max-tokens", "8", "--url", server.url]
    whole, streamed = run(*arguments), run(*arguments, "--stream")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout == streamed.stdout != ""
    assert run("predict", "-k", "nobody", "x", "--url", server.url).stderr.startswith(
        "error [KeyUnknown]: "
    )
