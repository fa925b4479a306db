"""`stacked eval`: what it sends, and its table, JSON and plot, against a double over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from stacked.cli import app

DIGESTS = {"good": f"sha256:{1:064x}", "bad": f"sha256:{2:064x}"}


@pytest.fixture
def url() -> Iterator[str]:
    """`good` repeats the prompt; `bad` does so for one of two; `both` is one, then the other."""
    turns: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            key, number = body["model"], int(body["prompt"].split()[-1])
            turns.append(key)
            text = body["prompt"] if key == "good" or number % 2 else "no"
            known = key in DIGESTS or key == "both"
            digest = DIGESTS.get(key, [*DIGESTS.values()][len(turns) % 2])
            answer: Any = {"choices": [{"text": text}]} if known else {"error": {"message": "?"}}
            data = json.dumps(answer).encode()
            self.send_response(200 if known else 404)
            self.send_header("content-length", str(len(data)))
            self.send_header("model-digest", digest)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [{"prompt": f"say {n}", "expected": f"say {n}"} for n in range(20)]
    (tmp_path / "say.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    path = tmp_path / "say.yaml"
    tree = {"name": "say", "parameters": {"max_tokens": 3}, "examples": "say.jsonl"}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def run(*arguments: object) -> Result:
    environ = {"COLUMNS": "200", "STACKED_API_KEY": "", "STACKED_OCI_CONFIG": ""}
    return CliRunner().invoke(app, ["eval", *map(str, arguments)], env=environ)


def test_keys_are_scored_and_compared_with_the_first(url: str, file: Path, tmp_path: Path) -> None:
    written, plot = tmp_path / "found.json", tmp_path / "found.svg"
    options = ["--wrong", 1, "--json", written, "--plot", plot, "--url", url]
    done = run("good", "bad", "--set", file, *options)
    assert done.exit_code == 0, done.output
    shown = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "good 000000000000 1.000 0.839 to 1.000" in shown
    (bad,) = (line for line in shown if line.startswith("bad 000000000000 0.500 "))
    assert "-0.500 -0.7" in bad
    assert "bad, example 1, score 0: say 0" in shown
    found = json.loads(written.read_text(encoding="utf-8"))
    assert (found["name"], found["metric"]) == ("say", "exact")
    first, second = found["results"]
    assert (first["digest"], first["difference"]) == (DIGESTS["good"], None)
    assert [each["score"] for each in second["answers"]] == [0.0, 1.0] * 10
    assert second["difference"]["low"] < second["difference"]["mean"] == -0.5
    assert "mean of 20 examples" in plot.read_text(encoding="utf-8")


def test_answers_of_two_adapters_are_no_score_of_one(url: str, file: Path) -> None:
    done = run("both", "--set", file, "--url", url)
    assert done.exit_code == 1
    assert "answered by two adapters" in str(done.exception)


def test_what_cannot_be_scored_says_why(url: str, file: Path, tmp_path: Path) -> None:
    unknown = run("nobody", "--set", file, "--url", url)
    assert "nobody answered 404" in str(unknown.exception)
    nowhere = run("good", "--set", file, "--url", "http://127.0.0.1:1")
    assert nowhere.exit_code == 1
    file.write_text("name: say\nmetric: bleu\nexamples: [{prompt: a, expected: b}]")
    assert "metric 'bleu' is not known here" in str(run("a", "--set", file, "--url", url).exception)


def test_a_function_of_this_machine_is_a_metric(
    url: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def tenth(answer, expected, example): return len(answer) / 100"
    (tmp_path / "lengths.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    tree = yaml.safe_load(file.read_text()) | {"metric": "lengths:tenth"}
    file.write_text(yaml.safe_dump(tree))
    done = run("good", "--set", file, "--url", url)
    assert "lengths:tenth on 20 examples of say" in done.stdout
    assert " 0.055 " in done.stdout
