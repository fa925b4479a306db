"""What a path means: its one form, the deployment that it is below, and the model that it names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.serving.targets import (
    Inner,
    Target,
    app_path,
    canonical,
    inner_path,
    is_listing,
    is_open,
    is_tensors,
    model_target,
)

ID = "ocid1.datasciencemodeldeployment.oc1..d"
STREAM = "predictWithResponseStream"


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ("/v1/completions", "/v1/completions"),
        ("/v1/completions/", "/v1/completions"),
        ("//20190101/models", "/20190101/models"),
        ("/", "/"),
        ("", "/"),
        ("///", "/"),
        ("/%76%31/completions", "/v1/completions"),
        ("/v1/load_lora%5Fadapter", "/v1/load_lora_adapter"),
        ("/models/a%20b/health", "/models/a b/health"),
        ("/models/a%2Fb/health", "/models/a%2Fb/health"),
        ("/models/a%2fb%2f", "/models/a%2Fb%2F"),
        ("/models/100%25/health", "/models/100%25/health"),
        ("/models/%E6%A8%A1/health", "/models/模/health"),
    ],
)
def test_a_path_has_one_form(raw: str, found: str) -> None:
    assert canonical(raw) == found
    if "//" not in raw:
        assert canonical(found) == found


@given(st.text("/%aF2. é", max_size=12))
def test_the_one_form_stays_what_it_is(raw: str) -> None:
    assert canonical(canonical(raw)) == canonical(raw)


@pytest.mark.parametrize(
    ("path", "deployment", "inner", "below"),
    [
        (f"/{ID}/predict", ID, "/predict", None),
        (f"/{ID}/{STREAM}", ID, f"/{STREAM}", None),
        (f"/{ID}/predict/v1/models", ID, "/v1/models", "predict"),
        (f"/{ID}/predict/v1/chat/completions", ID, "/v1/chat/completions", "predict"),
        (f"/{ID}/{STREAM}/v1/chat/completions", ID, "/v1/chat/completions", STREAM),
        (f"/{ID}/predict/tokenize", ID, "/tokenize", "predict"),
        (f"/{ID}/predict/detokenize", ID, "/detokenize", "predict"),
        (f"/{ID}/predict/rerank", ID, "/rerank", "predict"),
        (f"/{ID}/predict/metrics", ID, "/metrics", "predict"),
        (f"/{ID}/predict/health", ID, "/health", "predict"),
        ("/a b/predict", "a b", "/predict", None),
        ("/predict/v1/models", None, "/v1/models", "predict"),
        (f"/{STREAM}/v1/completions", None, "/v1/completions", STREAM),
        ("/predict/tokenize", None, "/tokenize", "predict"),
        ("/predict", None, "/predict", None),
        ("/models/sql/predict", None, "/models/sql/predict", None),
        ("/models/predict", None, "/models/predict", None),
        ("/v1/predict", None, "/v1/predict", None),
        # What is administrative stays out of reach there, too.
        ("/predict/pause", None, "/predict/pause", None),
        ("/predict/stacked/status", None, "/predict/stacked/status", None),
        ("/predict/20190101/models", None, "/predict/20190101/models", None),
        ("/predict/models/a", None, "/predict/models/a", None),
        ("/predict/predict", None, "/predict/predict", None),
        (f"/20190101/modelDeployments/{ID}", None, f"/20190101/modelDeployments/{ID}", None),
        (f"/{ID}/predictions", None, f"/{ID}/predictions", None),
        (f"/{ID}", None, f"/{ID}", None),
    ],
)
def test_path_below_a_deployment(
    path: str, deployment: str | None, inner: str, below: str | None
) -> None:
    assert inner_path(path) == Inner(deployment, inner, below)


@pytest.mark.parametrize(
    ("raw", "model"),
    [
        ("/models/sql/predict", "sql"),
        ("/model/sql/predict", "sql"),
        ("/models/meta-llama%2FLlama-3/predict", "meta-llama/Llama-3"),
        ("/models/meta-llama/Llama-3/predict", "meta-llama/Llama-3"),
        ("/models/a%20(b)/predict/", "a (b)"),
        ("/models/x%2Fpredict/predict", "x/predict"),
        ("/models/predict/predict", "predict"),
    ],
)
def test_a_path_names_a_model_with_its_slashes(raw: str, model: str) -> None:
    assert model_target("POST", canonical(raw)) == Target(None, model, plain=True, oci=True)


@pytest.mark.parametrize(
    ("raw", "target"),
    [
        ("deployments/sql/chat/completions", Target("/v1/chat/completions", "sql")),
        ("deployments/a%2Fb%25/completions", Target("/v1/completions", "a/b%")),
        ("deployments/sql/embeddings", Target("/v1/embeddings", "sql")),
        ("responses", Target("/v1/responses")),
        ("deployments/sql/load_lora_adapter", None),
        ("deployments/sql/../../v1/completions", None),
        ("deployments//completions", None),
        ("deployments/sql", None),
    ],
)
def test_a_deployment_of_azures_is_an_inference_key(raw: str, target: Target | None) -> None:
    assert model_target("POST", canonical(f"/openai/{raw}")) == target
    assert model_target("GET", canonical(f"/openai/{raw}")) is None


def test_a_coded_slash_ends_no_name() -> None:
    assert model_target("POST", canonical("/models/x%2Fpredict")) is None
    assert is_listing(canonical("/v1/models/meta-llama%2FLlama-3"))
    assert is_listing("/v1/models")
    assert not is_listing("/v1/modelsX")
    assert is_open("GET", "/v1/models/a")


def test_a_line_end_in_a_name_changes_nothing() -> None:
    assert is_listing(canonical("/v1/models/a%0Ab"))
    assert model_target("POST", canonical("/models/a%0Ab/predict")) == Target(
        None, "a\nb", plain=True, oci=True
    )
    assert model_target("POST", canonical("/v1/a%0Ab")) == Target("/v1/a\nb")
    assert inner_path("/ocid1.x\n/predict").deployment == "ocid1.x\n"


@pytest.mark.parametrize(
    "raw", ["/v1/feedback", "/v1/load_lora_adapter", "/v1/unload_lora%5Fadapter/", "/pause"]
)
def test_no_spelling_reaches_what_is_administrative(raw: str) -> None:
    assert model_target("POST", canonical(raw)) is None


def test_a_name_with_a_slash_reaches_no_other_route_than_the_one_it_was_judged_by() -> None:
    assert app_path(canonical("/models%2Fx%2Fpredict")) == "/models%2Fx%2Fpredict"
    assert app_path(canonical("/models/x%2Fpredict")) == "/models/x%2Fpredict"
    assert app_path(canonical("/20190101/models/a%2Fb")) == "/20190101/models/a/b"


def test_tensors_are_sent_to_a_model_by_its_key_in_the_path() -> None:
    target = model_target("POST", "/v2/models/a%2Fb/infer")
    assert target is not None
    assert (target.path, target.model, target.tensors, target.plain) == (None, "a/b", True, True)
    embeds = model_target("POST", "/v2/embed")
    assert embeds is not None
    assert (embeds.path, embeds.tensors) == ("/v2/embed", False)


@pytest.mark.parametrize("path", ["/v2", "/v2/models", "/v2/models/a/ready", "/v2/health/live"])
def test_paths_of_the_open_inference_protocol(path: str) -> None:
    assert is_tensors(path)
    assert not is_tensors(f"/v1{path}")


@pytest.mark.parametrize("path", ["/v2/embed", "/v2/rerank", "/v2/health", "/v21"])
def test_other_paths_below_v2_are_not_of_that_protocol(path: str) -> None:
    assert not is_tensors(path)
