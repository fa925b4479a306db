"""No prompt, answer, credential or key in any log, file or output of a server, whatever is sent.

Every request carries a mark of its own, so that a failure names the request that leaks.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from stacked.signing import Signer
from tests.servers import Signed
from tests.serving import Server
from tests.waiting import until

pytestmark = pytest.mark.engine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def said(mark: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"My password is {mark}, my card {mark}."}]


def bodies(mark: str) -> Iterator[tuple[str, Any]]:
    """Requests to every endpoint that runs a model, right ones and wrong ones."""
    chat: dict[str, Any] = {"messages": said(mark), "max_tokens": 4}
    text: dict[str, Any] = {"prompt": f"My password is {mark}", "max_tokens": 4}
    long = mark * 3000
    yield "/predict", chat
    yield "/predict", text | {"model": "a"}
    yield "/predict", text | {"n": 2, "logprobs": 1, "echo": True, "prompt": [mark, mark]}
    yield "/predictWithResponseStream", chat
    yield "/models/a/predict", text
    yield CHAT, chat | {"stream": True, "stream_options": {"include_usage": True}}
    yield CHAT, chat | {"logprobs": True, "top_logprobs": 2, "stop": [mark], "user": mark}
    yield CHAT, chat | {"messages": said(long)}
    yield CHAT, chat | {"messages": [{"role": mark, "content": mark}]}
    yield CHAT, chat | {"messages": mark}
    yield CHAT, chat | {"messages": [{"role": "user", "content": [{"type": mark, mark: mark}]}]}
    yield (
        CHAT,
        chat
        | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": mark}]}]},
    )
    yield CHAT, chat | {"response_format": {"type": "json_schema", "json_schema": {mark: mark}}}
    yield CHAT, chat | {"structured_outputs": {"regex": f"({mark}"}}
    yield CHAT, chat | {"structured_outputs": {"grammar": f"root ::= {mark}"}}
    yield CHAT, chat | {"structured_outputs": {"choice": [mark]}}
    yield CHAT, chat | {"tools": [{"type": "function", "function": {"name": mark}}]}
    yield CHAT, chat | {"tool_choice": mark}
    yield CHAT, chat | {"chat_template": f"{{{{ {mark} }}}}"}
    yield CHAT, chat | {"chat_template_kwargs": {mark: mark}}
    yield CHAT, chat | {"logit_bias": {mark: 1}}
    yield CHAT, chat | {"temperature": mark}
    yield CHAT, chat | {mark: mark}
    yield "/predict", chat | {mark: mark}
    yield CHAT, chat | {"model": mark}
    yield COMPLETIONS, text | {"prompt": [long]}
    yield COMPLETIONS, text | {"prompt": {"a": mark}}
    yield COMPLETIONS, text | {"prompt_embeds": mark}
    yield COMPLETIONS, text | {"suffix": mark, "stream": True}
    yield COMPLETIONS, text | {"max_tokens": 10**9}
    yield COMPLETIONS, text | {"stop": [mark] * 500}
    yield COMPLETIONS, f'{{"prompt": "{mark}", '.encode()
    yield COMPLETIONS, f'"{mark}"'.encode()
    yield COMPLETIONS, b'{"prompt": "' + mark.encode() + b'\xff"}'
    yield "/v1/responses", {"input": mark, "instructions": mark, "max_output_tokens": 4}
    yield "/v1/responses", {"input": [{"role": mark, "content": mark}], "stream": True}
    yield "/v1/messages", chat | {"system": mark}
    yield "/v1/messages", {"messages": mark, "max_tokens": 4}
    yield "/tokenize", {"prompt": mark}
    yield "/tokenize", {"messages": said(mark)}
    yield "/detokenize", {"tokens": mark}
    yield "/invocations", chat
    yield "/v1/embeddings", {"input": mark}
    yield "/v1/audio/transcriptions", {"file": mark}
    yield (
        "/v1/load_lora_adapter",
        {"lora_name": "x", "lora_path": f"https://u:{mark}@127.0.0.1:1/x"},
    )
    yield "/models/x", {"source": f"https://127.0.0.1:1/x.zip?sig={mark}"}
    yield "/models/x", {"source": f"s3://u:{mark}@host/x"}


def written(server: Server) -> dict[Path, bytes]:
    """Everything that a server keeps or prints, but for adapters and bases themselves."""
    data = server.directory / "data"
    files = [server.terminal, *data.glob("logs/**/*"), *data.glob("deployments/*/registry*")]
    return {path: path.read_bytes() for path in files if path.is_file()}


def holds(server: Server, text: str) -> bool:
    return any(text.encode() in content for content in written(server).values())


def send(client: httpx.Client, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(
        path, content=content, headers={"content-type": "application/json"} | headers
    )


def test_nothing_that_is_sent_or_answered_is_written(server: Server, http: httpx.Client) -> None:
    marks, answers = {}, set()
    for number, (path, _) in enumerate(bodies("")):
        mark = f"zq{number:03}secret"
        _, body = list(bodies(mark))[number]
        secret = {"authorization": f"Bearer {mark}", "api-key": mark, "cookie": f"a={mark}"}
        response = send(http, path, body, **secret)
        assert response.status_code != 500, (path, body, response.text)
        marks[mark] = f"{path} {json.dumps(body, default=repr)[:200]}"
        answers |= set(re.findall(r'"(?:content|text)": ?"([^"\\]{12,})"', response.text))
    last = send(http, "/tokenize", {"prompt": "zq000secret"})
    until(lambda: holds(server, last.headers["opc-request-id"]))  # all before it are written too
    for path, content in written(server).items():
        for mark, request in marks.items():
            assert mark.encode() not in content, f"{path.name} has what was sent: {request}"
        for answer in answers:
            assert answer.encode() not in content, f"{path.name} has an answer: {answer}"
        ids = last.json()["tokens"]
        assert ", ".join(map(str, ids)).encode() not in content, f"{path.name} has a prompt's ids"


def test_no_signature_and_no_key_is_written(signed: Signed) -> None:
    secrets = []
    for file in signed.config_file.parent.iterdir():
        text = file.read_text(encoding="utf-8")
        if "PRIVATE KEY" in text:
            secrets += [line for line in text.splitlines() if "KEY" not in line]
    assert secrets
    with signed.server.client(auth=Signer.from_file(signed.config_file)) as client:
        for path in ("/stacked/status", "/20190101/models", "/nowhere"):
            request = client.get(path).request
            secrets += re.findall(r'signature="([^"]+)"', request.headers["authorization"])
            broken = request.headers["authorization"].replace('signature="', 'signature="AAAA')
            with signed.server.client(headers={"authorization": broken}) as other:
                last = other.get(path)
    assert base64.b64decode(secrets[-1])
    until(lambda: holds(signed.server, last.headers["opc-request-id"]))
    for path, content in written(signed.server).items():
        for secret in secrets:
            assert secret.encode() not in content, path
