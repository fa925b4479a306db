"""The environment and directory of a STACKED deployment, and the config that they come to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stacked.config import Config
from stacked.container import find_model, is_container, read_environment
from stacked.errors import ConfigInvalid
from stacked.steps import Silent

BASE = "ocid1.datasciencemodel.oc1.iad.base"
SQL = "ocid1.datasciencemodel.oc1.iad.sql"
TRIAGE = "ocid1.datasciencemodel.oc1.iad.triage"


class Notes(Silent):
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Deployment:
    """A deployed-model directory, and what read_environment makes of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.told = Notes()

    def put(self, place: str, *files: str) -> Path:
        directory = self.root / place
        directory.mkdir(parents=True)
        for file in files:
            (directory / file).write_text("{}", encoding="utf-8")
        return directory

    def config(self, **environ: str) -> Config:
        return read_environment({"STACKED_MODEL_DIR": str(self.root), **environ}, self.told)

    def refusal(self, **environ: str) -> str:
        with pytest.raises(ConfigInvalid) as refused:
            self.config(**environ)
        return str(refused.value)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """A base and two adapters, one of them by reference: below its bucket prefix."""
    made = Deployment(tmp_path / "deployed_model")
    made.put(BASE, "config.json", "model.safetensors")
    made.put(SQL, "adapter_config.json", "adapter_model.safetensors")
    made.put(f"{TRIAGE}/tenant/prefix", "adapter_config.json", "adapter_model.safetensors")
    return made


def members(config: Config) -> dict[str | None, str]:
    return {member.id: member.source for member in config.group.members}


def test_the_payload_of_a_deployment_is_served(deployment: Deployment) -> None:
    config = deployment.config(
        MODEL=f"{deployment.root}/{BASE}/",
        PARAMS=f"--served-model-name {BASE} --max-model-len 2048 --max-lora-rank 64 --enable_lora",
        PORT="9000",
        HEALTH_CHECK_PORT="9000",
        MODEL_DEPLOY_PREDICT_ENDPOINT="/v1/chat/completions",
        MODEL_DEPLOY_ENABLE_STREAMING="true",
        TENSOR_PARALLELISM="1",
        VLLM_ALLOW_RUNTIME_LORA_UPDATING="True",
        BASE_MODEL="service_models/base/1/artifact",
        WEB_CONCURRENCY="1",
    )
    assert config.base.model == str(deployment.root / BASE)
    assert (config.base.id, config.base.key) == (BASE, "base")
    assert config.engine == {"max_model_len": 2048, "max_lora_rank": 64, "tensor_parallel_size": 1}
    assert config.server.host == "0.0.0.0"
    assert (config.server.port, config.server.health_port) == (9000, None)
    assert config.server.predict_endpoint == "/v1/chat/completions"
    assert config.server.runtime_updates is True
    assert config.server.adapter_roots == (str(deployment.root),)


def test_adapters_are_members_by_their_ocid(deployment: Deployment) -> None:
    config = deployment.config()
    assert members(config) == {
        SQL: str(deployment.root / SQL),
        TRIAGE: str(deployment.root / TRIAGE / "tenant" / "prefix"),
    }
    assert [member.key for member in config.group.members] == [None, None]


def test_the_only_base_is_found_without_MODEL(deployment: Deployment) -> None:
    config = deployment.config()
    assert config.base.model == str(deployment.root / BASE)
    assert config.base.id == BASE


def test_a_base_by_reference_is_found_below_its_prefix(deployment: Deployment) -> None:
    other = "ocid1.datasciencemodel.oc1.iad.other"
    found = deployment.put(f"{other}/bucket/llama", "config.json", "model.safetensors")
    config = deployment.config(MODEL=f"{deployment.root}/{other}/")
    assert config.base.model == str(found)
    assert config.base.id == other
    assert BASE not in members(config)
    assert any(BASE in note for note in deployment.told.notes)


def test_two_bases_without_MODEL_are_refused(deployment: Deployment) -> None:
    deployment.put("ocid1.datasciencemodel.oc1.iad.other", "config.json")
    said = deployment.refusal()
    assert said.startswith("MODEL: not set")
    assert "2 base models" in said


def test_no_base_is_refused(tmp_path: Path) -> None:
    assert "holds no base model" in Deployment(tmp_path / "none").refusal()


@pytest.mark.parametrize("model", ["org/name", "smollm2-135m-instruct"])
def test_the_base_may_be_a_name(deployment: Deployment, model: str) -> None:
    config = deployment.config(MODEL=model)
    assert config.base.model == model
    assert config.base.id is None


def test_MODEL_that_is_not_there_is_refused(deployment: Deployment) -> None:
    said = deployment.refusal(MODEL="/opt/none/such")
    assert said == "MODEL: there is no directory /opt/none/such"


def test_MODEL_without_a_config_is_refused(deployment: Deployment) -> None:
    empty = deployment.put("ocid1.datasciencemodel.oc1.iad.empty")
    assert "holds no config.json" in deployment.refusal(MODEL=str(empty))


def test_served_model_name_may_be_the_inference_key(deployment: Deployment) -> None:
    config = deployment.config(PARAMS="--served_model_name odsc-llm")
    assert (config.base.key, config.base.id) == ("odsc-llm", BASE)
    assert "served_model_name" not in config.engine


def test_served_model_name_may_give_both(deployment: Deployment) -> None:
    config = deployment.config(PARAMS=f"--served-model-name main {BASE}")
    assert (config.base.key, config.base.id) == ("main", BASE)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("one two", "two names of one kind"),
        ("meta-llama//Llama", "empty part"),
        ("k" * 33, "33 characters"),
        ("ocid1.", "not an OCID"),
    ],
)
def test_a_served_model_name_that_cannot_be_is_refused(
    deployment: Deployment, names: str, words: str
) -> None:
    said = deployment.refusal(PARAMS=f"--served-model-name {names}")
    assert said.startswith("PARAMS: --served-model-name")
    assert words in said


def test_keys_are_given_to_members_and_to_the_base(deployment: Deployment) -> None:
    keys = f'{{"sql": "{SQL}", "sql-too": "{SQL}", "main": "{BASE}"}}'
    config = deployment.config(STACKED_KEYS=keys)
    assert config.base.key == "main"
    assert [(member.key, member.id) for member in config.group.members] == [
        ("sql", SQL),
        ("sql-too", SQL),
        (None, TRIAGE),
    ]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"sql": "none"}', "not an OCID"),
        ('{"a%20b": "ocid1.x.oc1.y"}', "two hex digits"),
        ('{"gone": "ocid1.x.oc1.gone"}', "'gone' (ocid1.x.oc1.gone)"),
        (f'{{"a": "{BASE}", "b": "{BASE}"}}', "one inference key"),
    ],
)
def test_keys_that_cannot_be_are_refused(deployment: Deployment, keys: str, words: str) -> None:
    said = deployment.refusal(STACKED_KEYS=keys)
    assert said.startswith("STACKED_KEYS: ")
    assert words in said


def test_a_key_for_the_base_that_PARAMS_names_otherwise_is_refused(deployment: Deployment) -> None:
    said = deployment.refusal(
        PARAMS="--served-model-name main", STACKED_KEYS=f'{{"other": "{BASE}"}}'
    )
    assert "already has the key 'main'" in said


def test_two_adapters_under_one_ocid_are_refused(deployment: Deployment) -> None:
    deployment.put(f"{TRIAGE}/tenant/other", "adapter_config.json")
    said = deployment.refusal()
    assert "adapter_config.json more than once" in said
    assert "tenant/other" in said


def test_a_checkpoint_below_an_adapter_is_not_another_adapter(deployment: Deployment) -> None:
    deployment.put(f"{SQL}/checkpoint-100", "adapter_config.json")
    assert members(deployment.config())[SQL] == str(deployment.root / SQL)


def test_what_holds_no_adapter_is_told_and_not_served(deployment: Deployment) -> None:
    deployment.put("ocid1.datasciencemodelgroup.oc1.iad.artifact", "README.md")
    deployment.put("lost+found")
    assert set(members(deployment.config())) == {SQL, TRIAGE}
    assert [note for note in deployment.told.notes if "artifact" in note]


def test_lora_modules_of_PARAMS_are_members(deployment: Deployment) -> None:
    config = deployment.config(
        PARAMS="""--lora-modules a=/adapters/a '{"name": "b", "path": "/adapters/b"}'"""
    )
    named = {member.key: member.source for member in config.group.members if member.key}
    assert named == {"a": "/adapters/a", "b": "/adapters/b"}
    assert "lora_modules" not in config.engine


def test_lora_modules_without_a_path_are_refused(deployment: Deployment) -> None:
    assert "expected name=path" in deployment.refusal(PARAMS="--lora-modules a")


def test_what_stacked_sets_itself_is_not_an_engine_option(deployment: Deployment) -> None:
    config = deployment.config(
        PARAMS="--enable-lora --host 127.0.0.1 --port 7000 --model org/base --max-loras 2"
    )
    assert config.engine == {"max_loras": 2}
    assert (config.server.host, config.server.port) == ("127.0.0.1", 7000)
    assert config.base.model == "org/base"


def test_allowed_origins_of_PARAMS_are_the_servers(deployment: Deployment) -> None:
    config = deployment.config(
        PARAMS="--allowed-origins '[\"https://a.example\"]' --allow-credentials"
    )
    assert config.server.cors.origins == ("https://a.example",)
    assert config.engine.keys() == deployment.config(PARAMS="").engine.keys()
    assert deployment.config(PARAMS="").server.cors.origins == ()
    assert "JSON list" in deployment.refusal(PARAMS="--allowed-origins https://a.example")


def test_PORT_counts_over_the_port_of_PARAMS(deployment: Deployment) -> None:
    assert deployment.config(PARAMS="--port 7000", PORT="9000").server.port == 9000


def test_another_health_port_and_path(deployment: Deployment) -> None:
    server = deployment.config(
        HEALTH_CHECK_PORT="9001", MODEL_DEPLOY_HEALTH_ENDPOINT="/ready"
    ).server
    assert (server.port, server.health_port, server.health_path) == (8080, 9001, "/ready")


def test_tensor_parallelism_gives_way_to_PARAMS(deployment: Deployment) -> None:
    config = deployment.config(PARAMS="-tp 2", TENSOR_PARALLELISM="4")
    assert config.engine == {"tensor_parallel_size": 2}
    assert any("TENSOR_PARALLELISM=4" in note for note in deployment.told.notes)


@pytest.mark.parametrize("text", ["true", "True", "1", "false", "False", "0", ""])
def test_runtime_updates_as_they_are_spelt(deployment: Deployment, text: str) -> None:
    config = deployment.config(VLLM_ALLOW_RUNTIME_LORA_UPDATING=text)
    assert config.server.runtime_updates is (text.lower() in {"true", "1"})


def test_runtime_updates_unset_are_left_to_the_server(deployment: Deployment) -> None:
    assert deployment.config().server.runtime_updates is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "web"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("HEALTH_CHECK_PORT", "-1"),
        ("MODEL_DEPLOY_PREDICT_ENDPOINT", "/v1/embeddings"),
        ("MODEL_DEPLOY_HEALTH_ENDPOINT", "health"),
        ("TENSOR_PARALLELISM", "all"),
        ("TENSOR_PARALLELISM", "0"),
        ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "maybe"),
        ("PARAMS", "max-model-len 1"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(
    deployment: Deployment, name: str, value: str
) -> None:
    said = deployment.refusal(**{name: value})
    assert said.startswith(f"{name}: ")


@pytest.fixture
def read_only(deployment: Deployment) -> Iterator[Deployment]:
    """As the platform mounts it. For root nothing is read-only, so the files are compared too."""
    directories = [deployment.root, *(path for path in deployment.root.rglob("*") if path.is_dir())]
    for directory in directories:
        directory.chmod(0o555)
    yield deployment
    for directory in directories:
        directory.chmod(0o755)


def test_the_model_directory_is_only_read(read_only: Deployment) -> None:
    def state() -> set[tuple[Path, int]]:
        return {(path, path.stat().st_mtime_ns) for path in read_only.root.rglob("*")}

    before = state()
    assert set(members(read_only.config())) == {SQL, TRIAGE}
    assert state() == before


def test_find_model_ends_in_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.symlink(tmp_path, tmp_path / "a" / "back")
    assert find_model(tmp_path, "adapter_config.json") is None


@pytest.mark.parametrize("name", ["MODEL", "PARAMS", "STACKED_MODEL_DIR"])
def test_the_environment_says_that_this_is_a_container(name: str) -> None:
    assert is_container({name: "x"})
    assert not is_container({name: "", "HOME": "/root"})


def test_tokens_that_the_base_lacks_are_refused_unless_it_is_said(deployment: Deployment) -> None:
    assert not deployment.config().server.foreign_tokens
    assert deployment.config(STACKED_FOREIGN_TOKENS="true").server.foreign_tokens


def test_the_platform_checks_who_calls_unless_signatures_are_asked_for(
    deployment: Deployment,
) -> None:
    plain = deployment.config().server.auth
    assert (plain.none, plain.oci) == (True, None)
    assert deployment.config(STACKED_AUTH="none").server.auth == plain
    signed = deployment.config(STACKED_AUTH="oci").server.auth
    assert signed.oci is not None
    assert not signed.none
    both = deployment.config(STACKED_AUTH="bearer, oci").server.auth
    assert (both.bearer, both.oci is not None, both.none) == (True, True, False)
    for wrong in ("basic", "none,oci", "oci,,"):
        said = deployment.refusal(STACKED_AUTH=wrong)
        assert said.startswith("STACKED_AUTH: expected none, bearer, oci")
