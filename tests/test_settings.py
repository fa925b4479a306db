"""What the environment of a deployment says, and what of it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from stacked.errors import ConfigInvalid
from stacked.serving.settings import MOST_PROCESSES, read_settings, settings_of

OCID = "ocid1.datasciencemodel.oc1..base"


def test_flags_win_over_the_servers_defaults_and_what_is_its_own_is_left_out() -> None:
    environ = {
        "PARAMS": f"--served-model-name {OCID} --max-model-len 512 --enable_lora --port 9000",
        "TENSOR_PARALLELISM": "2",
        "MODEL_DEPLOY_PREDICT_ENDPOINT": "/v1/chat/completions",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
    }
    found = read_settings(environ, {"max-model-len": 256, "max_loras": 4})
    assert dict(found.engine) == {"max_model_len": 512, "max_loras": 4, "tensor_parallel_size": 2}
    assert (found.base_id, found.base_key) == (OCID, "")
    assert found.predict_endpoint == "/v1/chat/completions"
    assert found.runtime_updates
    assert "PARAMS --port" in found.notes[0]


def test_nothing_said_is_the_defaults() -> None:
    found = read_settings({}, {"max_loras": 4})
    assert dict(found.engine) == {"max_loras": 4}
    assert (found.predict_endpoint, found.runtime_updates, found.notes) == (None, True, ())


def test_what_has_no_effect_is_told() -> None:
    ours, unread = read_settings({"PORT": "8080", "MD_COMPARTMENT_OCID": "c"}, {}).notes
    assert ours.endswith("PORT")
    assert unread.endswith("MD_COMPARTMENT_OCID")


def test_runtime_updates_can_be_switched_off() -> None:
    assert not read_settings({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "False"}, {}).runtime_updates


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"PARAMS": "--max-model-len 'x"}, "PARAMS"),
        ({"PARAMS": "--lora-modules a=/x"}, "model group"),
        ({"PARAMS": "--served-model-name a b"}, "one inference key"),
        ({"TENSOR_PARALLELISM": "many"}, "TENSOR_PARALLELISM"),
        ({"MODEL_DEPLOY_PREDICT_ENDPOINT": "/v2"}, "MODEL_DEPLOY_PREDICT_ENDPOINT"),
        ({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "maybe"}, "true or false"),
        ({"A": "x" * 2047}, "2048 bytes"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigInvalid, match=said):
        read_settings(environ, {})


def test_just_under_the_limit_is_taken() -> None:
    read_settings({"A": "x" * 2046}, {})


def of_models(**variables: str) -> Any:
    configuration = {"engine": {"max_loras": 4}, "environment": {"environmentVariables": variables}}
    return settings_of(configuration, "HOMOGENEOUS")


def test_models_without_vllm_have_processes_and_no_flags() -> None:
    found = of_models(WEB_CONCURRENCY="3", PARAMS="--no-such-flag 'x", PORT="80")
    assert found.processes == 3
    assert found.notes[0].endswith("PARAMS, PORT")
    # For a group with a base that may come later.
    assert dict(found.engine) == {"max_loras": 4}
    assert (of_models().processes, of_models().notes) == (1, ())


@pytest.mark.parametrize("count", ["0", "-1", "two", str(MOST_PROCESSES + 1)])
def test_a_number_of_processes_that_cannot_be_is_refused(count: str) -> None:
    with pytest.raises(ConfigInvalid, match="WEB_CONCURRENCY"):
        of_models(WEB_CONCURRENCY=count)


def test_several_language_models_in_one_container_are_refused_by_name() -> None:
    with pytest.raises(ConfigInvalid, match="MULTI_MODEL_CONFIG"):
        of_models(MULTI_MODEL_CONFIG="{}")


def test_the_number_of_processes_means_nothing_to_vllm() -> None:
    (note,) = read_settings({"WEB_CONCURRENCY": "auto"}, {}).notes
    assert note.endswith("WEB_CONCURRENCY")
