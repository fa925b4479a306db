"""`configs/models.yaml`: models of several frameworks from a file, without vLLM."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from tests.serving import Server, free_port, serving

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "models.yaml"


def ask(server: Server, key: str, body: Any) -> Any:
    answer = httpx.post(f"{server.url}/predict", headers={"model-key": key}, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def rows(*data: list[float]) -> dict[str, Any]:
    shape = [len(data), len(data[0])]
    return {"inputs": [{"name": "input", "shape": shape, "datatype": "FP32", "data": [*data]}]}


def test_demo_serves_each_framework_and_comes_back_as_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # left by an engine in this process
    port = free_port()
    data = ("--data-dir", str(tmp_path / "data"), "--port", str(port))
    with serving(str(DEMO), *data, directory=tmp_path, port=port) as server:
        degrees = ask(server, "fahrenheit", rows([0], [100]))["outputs"][0]["data"]
        assert degrees == pytest.approx([32, 212], abs=0.2)
        inside = ask(server, "circle", rows([0, 0], [0.6, -0.6], [1.2, 0.3], [-1, -1]))
        assert np.round(inside["outputs"][0]["data"]).tolist() == [1, 1, 0, 0]
        text = {"text": "To be, or not to be: that is the question.", "most": 2}
        assert ask(server, "words", text) == {"prediction": [["be", 2], ["or", 1]]}
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert not [name for name in ("torch", "vllm", "onnxruntime") if name in maps]
        generation = httpx.get(f"{server.url}/stacked/status").json()["generation"]
    with serving(str(DEMO), *data, directory=tmp_path, port=port) as server:
        assert httpx.get(f"{server.url}/stacked/status").json()["generation"] == generation
        assert ask(server, "words", {"text": "a b b", "most": 1}) == {"prediction": [["b", 2]]}
    tree = yaml.safe_load(DEMO.read_text())
    tree["group"]["members"] = [{"key": "c", "source": str(DEMO.parent / "models" / "circle.onnx")}]
    del tree["models"]  # nothing here is code
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(tree))
    with serving(str(tmp_path / "other.yaml"), *data, directory=tmp_path, port=port) as server:
        status = httpx.get(f"{server.url}/stacked/status").json()
        assert [each["inferenceKey"] for each in status["models"]] == ["c"]
        assert status["generation"] > generation
        gone = httpx.post(f"{server.url}/predict", headers={"model-key": "words"}, json={})
        assert (gone.status_code, gone.json()["code"]) == (404, "KeyUnknown")


def stacked(server: Server, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "stacked", *words, "--url", server.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_file_updates_the_group_live_and_rollback_goes_back(tmp_path: Path) -> None:
    port = free_port()
    data = ("--data-dir", str(tmp_path / "data"), "--port", str(port))
    tree = yaml.safe_load(DEMO.read_text())
    words = tmp_path / "words"
    shutil.copytree(DEMO.parent / "models" / "words", words)
    (words / "stop_words.json").write_text('["b"]')
    circle = str(DEMO.parent / "models" / "circle.onnx")
    members = [{"key": "words", "source": "./words"}, {"key": "round", "source": circle}]
    (tmp_path / "next.yaml").write_text(
        yaml.safe_dump({"group": {**tree["group"], "members": members}})
    )
    body = {"text": "a b b c", "most": 1}
    with serving(str(DEMO), *data, directory=tmp_path, port=port) as server:
        assert ask(server, "words", body) == {"prediction": [["b", 2]]}
        said = stacked(server, "update", "--live", str(tmp_path / "next.yaml"))
        assert "generation 2" in said
        assert "the server has 1 of 2 from here" in said
        assert ask(server, "words", body) == {"prediction": [["a", 1]]}
        assert ask(server, "round", rows([0, 0]))["model_name"] == "round"
        assert "Nothing to change" in stacked(
            server, "update", "--live", str(tmp_path / "next.yaml")
        )
        listed = stacked(server, "models")
        assert "round" in listed
        assert "fahrenheit" not in listed
        stacked(server, "rollback")
        assert ask(server, "words", body) == {"prediction": [["b", 2]]}
        assert ask(server, "fahrenheit", rows([0]))["outputs"]


def test_a_model_that_is_code_is_refused_where_the_file_does_not_allow_it(tmp_path: Path) -> None:
    tree = yaml.safe_load(DEMO.read_text())
    tree["group"]["members"] = [{"key": "w", "source": str(DEMO.parent / "models" / "words")}]
    del tree["models"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "stacked", "serve", str(tmp_path / "c.yaml")]
    command += ["--data-dir", str(tmp_path / "data"), "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "group.members[0] (w)" in done.stderr
    assert "models.code: true" in done.stderr


def test_demo_models_are_those_that_the_script_makes(tmp_path: Path) -> None:
    there = DEMO.parent / "models"
    (tmp_path / "make.py").write_text((there / "make.py").read_text())
    subprocess.run([sys.executable, str(tmp_path / "make.py")], check=True, timeout=120)
    import onnx
    from onnx import numpy_helper

    for name in ("fahrenheit", "circle"):
        made, kept = (onnx.load(place / f"{name}.onnx") for place in (tmp_path, there))
        for ours, theirs in zip(made.graph.initializer, kept.graph.initializer, strict=True):
            # Other processors round otherwise.
            np.testing.assert_allclose(
                numpy_helper.to_array(ours), numpy_helper.to_array(theirs), rtol=0.05, atol=0.05
            )
