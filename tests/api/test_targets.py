"""Which paths are below a deployment, and what they are without it."""

from __future__ import annotations

import pytest

from stacked.api.targets import inner_path

ID = "ocid1.datasciencemodeldeployment.oc1..d"


@pytest.mark.parametrize(
    ("path", "deployment", "inner"),
    [
        (f"/{ID}/predict", ID, "/predict"),
        (f"/{ID}/predictWithResponseStream", ID, "/predictWithResponseStream"),
        (f"/{ID}/predict/v1/models", ID, "/v1/models"),
        (f"/{ID}/predict/v1/chat/completions", ID, "/v1/chat/completions"),
        ("/a%20b/predict", "a b", "/predict"),
        ("/predict/v1/models", None, "/v1/models"),
        ("/predict", None, "/predict"),
        ("/models/sql/predict", None, "/models/sql/predict"),
        ("/models/predict", None, "/models/predict"),
        ("/v1/predict", None, "/v1/predict"),
        (f"/20190101/modelDeployments/{ID}", None, f"/20190101/modelDeployments/{ID}"),
        (f"/{ID}/predictions", None, f"/{ID}/predictions"),
        (f"/{ID}", None, f"/{ID}"),
    ],
)
def test_path_below_a_deployment(path: str, deployment: str | None, inner: str) -> None:
    assert inner_path(path) == (deployment, inner)
