"""The Containerfile itself: no container engine runs here, so the file is read and checked."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
URL = re.compile(r"[a-z]+://([A-Za-z0-9.-]+)")


@dataclass(frozen=True)
class Instruction:
    """One line of the file, with its continuations joined; `stage` is the FROM that it is in."""

    stage: str
    word: str
    rest: str


def parse(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    stage = ""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            stage = rest.split(" AS ")[1].strip()
        yield Instruction(stage, word, rest.strip())


FILE = (ROOT / "Containerfile").read_text(encoding="utf-8")
INSTRUCTIONS = list(parse(FILE))


def of(word: str, stage: str | None = None) -> list[str]:
    """What every instruction of that word says, in one stage or in all."""
    return [each.rest for each in INSTRUCTIONS if each.word == word and stage in (None, each.stage)]


def test_one_argument_chooses_between_gpu_and_cpu() -> None:
    stages = dict(rest.split(" AS ")[::-1] for rest in of("FROM"))
    assert stages["gpu"].startswith("vllm/vllm-openai:")
    assert stages["cpu"].startswith("python:")
    assert stages["server"] == "${DEVICE}"
    defaults = dict(rest.split("=") for rest in of("ARG", stage=""))
    assert defaults["DEVICE"] == "gpu"
    assert defaults["VLLM_TAG"] == "v0.26.0"
    assert defaults["PYTHON_TAG"].startswith("3.11")


def test_the_cpu_image_is_built_from_the_same_pins_as_make_setup() -> None:
    (install,) = [run for run in of("RUN", "cpu") if "uv pip install" in run]
    assert "--extra cpu" in install
    assert "--overrides /build/cpu-overrides.txt" in install
    assert "--constraints /build/cpu.txt" in install
    (copied,) = of("COPY", "cpu")
    assert {"scripts/cpu-overrides.txt", "constraints/cpu.txt"} <= set(copied.split())


def test_the_gpu_image_keeps_its_own_vllm() -> None:
    (install,) = [run for run in of("RUN", "gpu") if "uv pip install" in run]
    assert "--extra" not in install
    assert "--constraints /build/image.txt" in install


def test_in_the_gpu_image_only_what_it_lacks_is_pinned(tmp_path: Path) -> None:
    (install,) = [run for run in of("RUN", "gpu") if "uv pip install" in run]
    freeze = "printf 'Rich==13.9\\nsome @ file:///x\\ntorch==2.11.0+cu130\\n'"
    (tmp_path / "cuda.txt").write_text("fastapi==0.136\nrich==14.0\ntorch==2.14.0\ntorch-x==1\n")
    script = install.replace("uv pip freeze", freeze).replace("/build", str(tmp_path))
    steps = [step for step in script.split("&&") if "pip install" not in step]
    subprocess.run(["sh", "-c", " && ".join(steps)], check=True)
    assert (tmp_path / "image.txt").read_text() == "Rich==13.9\ntorch==2.11.0+cu130\n"
    assert (tmp_path / "missing.txt").read_text() == "fastapi==0.136\ntorch-x==1\n"


def test_the_server_is_not_root() -> None:
    users = of("USER", "server")
    assert users[-1].isdigit()
    assert users[-1] != "0"
    last_run = max(at for at, each in enumerate(INSTRUCTIONS) if each.word == "RUN")
    assert [each.word for each in INSTRUCTIONS].index("USER") > last_run


def test_what_the_server_writes_goes_where_its_user_may_write() -> None:
    (made,) = [run for run in of("RUN", "server") if "install --directory" in run]
    user = of("USER", "server")[-1]
    assert f"--owner {user}" in made
    environment = dict(pair.split("=", 1) for pair in shlex.split(" ".join(of("ENV", "server"))))
    directory = environment["STACKED_DATA_DIR"]
    assert made.endswith(directory)
    assert environment["HF_HOME"].startswith(directory)


def test_the_entry_point_is_stacked_serve_without_a_shell() -> None:
    assert [json.loads(rest) for rest in of("ENTRYPOINT")] == [["stacked", "serve"]]
    assert not of("CMD")


def test_health_is_asked_on_the_port_that_the_platform_gives() -> None:
    (check,) = of("HEALTHCHECK")
    _, _, command = check.partition("CMD ")
    program = json.loads(command)
    assert program[:2] == ["python3", "-c"]
    compile(program[2], "HEALTHCHECK", "exec")
    # Of the process: an engine that starts, or starts again, is nothing to replace it for.
    assert "/health/live" in program[2]
    assert "os.environ['PORT']" in program[2]


def test_port_8080_is_exposed_and_the_default() -> None:
    assert of("EXPOSE") == ["8080"]
    assert "PORT=8080" in " ".join(of("ENV", "server"))


def test_everything_copied_is_in_the_repository_and_sent_to_the_builder() -> None:
    sent = {
        line[1:]
        for line in (ROOT / ".containerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = {source for rest in of("COPY") for source in shlex.split(rest)[:-1]}
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in sent, f"{source} is kept from the builder by .containerignore"


def test_no_host_is_named_but_this_one() -> None:
    hosts = set(URL.findall("\n".join(f"{each.word} {each.rest}" for each in INSTRUCTIONS)))
    assert hosts <= {"127.0.0.1"}


@pytest.mark.parametrize("word", ["token", "password", "secret", "api_key", "apikey"])
def test_no_secret_is_in_it(word: str) -> None:
    assert word not in FILE.lower()


def test_no_layer_keeps_a_cache() -> None:
    for run in of("RUN"):
        assert "apt-get install" not in run or "rm -rf /var/lib/apt/lists" in run
        for tool, option in (("pip install", "--no-cache"),):
            assert run.count(tool) == run.count(option)


def test_the_image_without_vllm_has_no_engine_and_two_users() -> None:
    text = (ROOT / "Containerfile.models").read_text(encoding="utf-8")
    found = [
        (word, rest) for word, rest in re.findall(r"(?m)^(\w+) (.*)", text.replace("\\\n", " "))
    ]
    (install,) = [rest for word, rest in found if word == "RUN"]
    assert '"/build[models,savedmodel]"' in install
    assert "--constraints /build/cpu.txt" in install
    assert not {"vllm", "torch"} & set(re.findall(r"\w+", install))
    uids = set(re.findall(r"--uid (\d+)", install))
    (entry,) = [json.loads(rest) for word, rest in found if word == "ENTRYPOINT"]
    uid = next(each.partition("=")[2] for each in entry if each.startswith("--reuid="))
    assert uid in uids
    assert len(uids) == 2
    assert "0" not in uids
    assert entry[-4:-2] == ["stacked", "serve"]
