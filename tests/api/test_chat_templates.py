"""Over a real server, an adapter's chats become the prompts that its own tokenizer makes."""

from __future__ import annotations

import concurrent.futures
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import tiny
from tests.conftest import TinyModels, complete
from tests.serving import Server

pytestmark = pytest.mark.engine

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour."},
]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
PIRATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }} says {{ m.content }}{{ eos_token }} "
    "{% endfor %}{% if add_generation_prompt %}Ahoy {% endif %}"
)
ROBOT = {
    "default": "{% for m in messages %}{{ loop.index }} {{ m.content }} {% endfor %}",
    "tool_use": "{{ tools[0].function.name }}{% for m in messages %}{{ m.content }}{% endfor %}",
}
SPECIAL = {"pirate": {"bos_token": "<|im_start|>"}, "robot": {}}
TEMPLATES: dict[str, Any] = {"pirate": PIRATE, "robot": ROBOT}


@pytest.fixture(scope="module")
def chatting(server: Server, tiny_models: TinyModels) -> Iterator[dict[str, Path]]:
    """Two adapters with templates of their own beside `a`, `b` and `c`: key -> folder."""
    folders = {}
    with server.client() as client:
        for name, source in (("pirate", "spare"), ("robot", "a")):
            folder = tiny_models.base.parent / f"chat-{name}"
            shutil.copytree(tiny_models.adapters[source], folder)
            tiny.save_tokenizer(folder, tiny_models.base, TEMPLATES[name], **SPECIAL[name])
            loaded = client.post(f"/models/{name}", json={"source": str(folder)})
            assert loaded.status_code == 200, loaded.text
            folders[name] = folder
        yield {**folders, "base": tiny_models.base, "a": tiny_models.base}
        for name in folders:
            client.delete(f"/models/{name}")


def judged(folder: Path, messages: list[Any], **template: Any) -> list[int]:
    """What transformers makes of a chat with the tokenizer in a folder."""
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, **{"add_generation_prompt": True, "return_dict": False} | template
    )
    return ids


def answered(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def test_every_route_makes_the_prompts_of_the_adapters_own_tokenizer(
    http: httpx.Client, chatting: dict[str, Path]
) -> None:
    seen = set()
    for key, folder in chatting.items():
        ids = judged(folder, MESSAGES)
        seen.add(tuple(ids))
        asked = {"model": key, "messages": MESSAGES}
        assert answered(http.post("/tokenize", json=asked))["tokens"] == ids
        limits = {"max_tokens": 1, "return_token_ids": True}
        chat = answered(http.post("/v1/chat/completions", json={**asked, **limits}))
        assert chat["prompt_token_ids"] == ids
        streamed = http.post("/v1/chat/completions", json={**asked, **limits, "stream": True})
        assert json.loads(streamed.text.split("\n")[0][6:])["prompt_token_ids"] == ids
        body = {"input": MESSAGES, "model": key, "max_output_tokens": 1}
        assert answered(http.post("/v1/responses", json=body))["usage"]["input_tokens"] == len(ids)
        system, *rest = MESSAGES
        claude = {"model": key, "messages": rest, "system": system["content"], "max_tokens": 1}
        usage = answered(http.post("/v1/messages", json=claude))["usage"]
        assert usage["input_tokens"] == len(ids)
        del claude["max_tokens"]
        counted = answered(http.post("/v1/messages/count_tokens", json=claude))
        assert counted["input_tokens"] == len(ids)
        said = answered(http.post("/predict", json={**asked, **limits}))
        assert said["prompt_token_ids"] == ids
    assert len(seen) == 3  # `a` brings no template


def test_tools_choose_the_template_for_tools(http: httpx.Client, chatting: dict[str, Path]) -> None:
    body = {"model": "robot", "messages": MESSAGES, "tools": [TOOL]}
    ids = judged(chatting["robot"], MESSAGES, tools=[TOOL])
    assert ids != judged(chatting["robot"], MESSAGES)
    assert answered(http.post("/tokenize", json=body))["tokens"] == ids


def test_many_at_once_get_each_its_own(server: Server, chatting: dict[str, Path]) -> None:
    wanted = {key: judged(folder, MESSAGES) for key, folder in chatting.items()}

    def ask(number: int) -> bool:
        key = [*wanted][number % len(wanted)]
        with server.client() as client:
            tokens = answered(client.post("/tokenize", json={"model": key, "messages": MESSAGES}))
        return bool(tokens["tokens"] == wanted[key])

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        assert all(threads.map(ask, range(80)))


def test_completions_and_templates_of_requests_are_as_ever(
    http: httpx.Client, chatting: dict[str, Path], answers: dict[str, str]
) -> None:
    """A prompt that is text goes as it is; a template in a request is refused as vLLM does."""
    assert complete(http, "robot") == answers["a"]  # the same weights
    body = {"model": "robot", "messages": MESSAGES, "chat_template": "{{ 7 }}"}
    for path in ("/v1/chat/completions", "/tokenize"):
        refused = http.post(path, json=body)
        assert refused.status_code == 400
        assert "trust-request-chat-template" in refused.text


def test_a_template_that_runs_away_at_a_request_takes_nobody_along(
    http: httpx.Client, tiny_models: TinyModels, chatting: dict[str, Path]
) -> None:
    folder = tiny_models.base.parent / "chat-wild"
    shutil.copytree(tiny_models.adapters["unkeyed"], folder)
    loops = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    template = "{% if messages[0].content == 'now' %}" + loops + "{% endif %}{{ messages }}"
    tiny.save_tokenizer(folder, tiny_models.base, template)
    loaded = http.post("/models/wild", json={"source": str(folder)})
    assert loaded.status_code == 200, loaded.text
    now = [{"role": "user", "content": "now"}]
    refused = http.post("/v1/chat/completions", json={"model": "wild", "messages": now})
    assert refused.status_code == 400
    assert "takes too long" in refused.text
    asked = {"model": "pirate", "messages": MESSAGES}
    tokens = answered(http.post("/tokenize", json=asked))["tokens"]
    assert tokens == judged(chatting["pirate"], MESSAGES)
    assert http.delete("/models/wild").status_code == 200


def test_what_cannot_be_served_as_trained_is_refused_by_name(
    http: httpx.Client, tiny_models: TinyModels
) -> None:
    folder = tiny_models.base.parent / "chat-foreign"
    shutil.copytree(tiny_models.adapters["unkeyed"], folder)
    tiny.save_tokenizer(folder, tiny_models.base, "{{ messages }}", ["<|think|>"])
    refused = http.post("/models/foreign", json={"source": str(folder)})
    assert refused.status_code == 400
    assert refused.json()["code"] == "TokensDiffer"
    assert "'<|think|>' (512)" in refused.json()["message"]
    tiny.save_tokenizer(folder, tiny_models.base, "{% if %}")
    refused = http.post("/models/foreign", json={"source": str(folder)})
    assert refused.json()["code"] == "ChatTemplateInvalid"
