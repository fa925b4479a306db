"""The container's entry point with a STACKED environment over a deployed-model directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest

from tests.conftest import TinyModels
from tests.serving import free_port, serving

pytestmark = pytest.mark.engine

OCID = "ocid1.datasciencemodel.oc1.iad."


def test_stacked_environment_over_a_model_directory_is_served(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    models = tmp_path / "deployed_model"
    shutil.copytree(tiny_models.base, models / f"{OCID}base")
    shutil.copytree(tiny_models.adapters["a"], models / f"{OCID}a")
    shutil.copytree(tiny_models.adapters["b"], models / f"{OCID}b" / "bucket" / "prefix")
    port, health_port = free_port(), free_port()
    environment = {
        "STACKED_MODEL_DIR": str(models),
        "STACKED_DATA_DIR": str(tmp_path / "data"),
        "STACKED_KEYS": json.dumps({"sql": f"{OCID}a"}),
        "MODEL": f"{models}/{OCID}base/",
        "PARAMS": "--served-model-name basemodel --max-model-len 128 --max_lora_rank 64 "
        "--enable_lora",
        "PORT": str(port),
        "HEALTH_CHECK_PORT": str(health_port),
        "MODEL_DEPLOY_PREDICT_ENDPOINT": "/v1/chat/completions",
        "MODEL_DEPLOY_ENABLE_STREAMING": "true",
        "TENSOR_PARALLELISM": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "WEB_CONCURRENCY": "1",
    }
    with serving("--host", "127.0.0.1", directory=tmp_path, port=port, environment=environment) as (
        server
    ):
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0}
        names = ["basemodel", f"{OCID}base", "sql", f"{OCID}a", f"{OCID}b"]
        with server.client() as client:
            listed = {row["id"] for row in client.get("/v1/models").json()["data"]}
            assert listed == {"basemodel", "sql", f"{OCID}b"}
            texts = {}
            for name in names:
                # The documented selector of STACKED deployments: the body's model.
                response = client.post("/predict", json=chat | {"model": name})
                assert response.status_code == 200, response.text
                assert response.json()["object"] == "chat.completion"
                texts[name] = response.json()["choices"][0]["message"]["content"]
            assert texts["basemodel"] == texts[f"{OCID}base"]
            assert texts["sql"] == texts[f"{OCID}a"]
            assert len(set(texts.values())) == 3
            # The platform's verbs: remove and load again, by OCID alone.
            assert client.delete(f"/models/{OCID}a").status_code == 200
            assert client.get(f"/models/{OCID}a/health").status_code == 404
            assert client.post(f"/models/{OCID}a").status_code == 200
            again = client.post("/predict", json=chat | {"model": f"{OCID}a"})
            assert again.json()["choices"][0]["message"]["content"] == texts["sql"]
        probe = httpx.get(f"http://127.0.0.1:{health_port}/health")
        assert probe.json()["status"] == "serving"
