"""An adapter's own template makes of a chat what transformers makes of it with its tokenizer."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stacked.chat import ChatTemplates, stored_chat
from stacked.engine.chat import AdapterChat, Chats, chat_text
from stacked.engine.rendering import render_by_own_template, render_short_prompts_at_once
from stacked.errors import ChatTemplateInvalid, EngineLoadFailed
from stacked.store.extras import settle
from stacked.store.limits import Limits
from tests import tiny
from tests.engine.releases import RELEASE
from tests.engine.test_rendering import make_renderer

pytestmark = pytest.mark.oldest

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Green"},
    {"role": "user", "content": "And a ship?"},
]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

PLAIN = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] "
    "{% generation %}{{ message['content'] | trim }}{% endgeneration %}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
PARTS = (
    "{% for message in messages %}{{ message.role | upper }}:"
    "{% for content in message['content'] %}{{ content['text'] }}{% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TOOLS = "{{ tools | tojson }}" + PLAIN


class Bench:
    """A renderer that was told, and the adapters that it may be given."""

    def __init__(self, base: Path, place: Path) -> None:
        self.base = base
        self.place = place
        self.renderer = make_renderer(base)
        self.chats = Chats(self.renderer, None)
        self.chosen: AdapterChat | None = None
        render_short_prompts_at_once(self.renderer, chats=True)
        render_by_own_template(self.renderer, lambda: self.chosen, None, self.chats.threads)

    def tokenizer(self, name: str, template: Any, **special: str | None) -> Path:
        return tiny.save_tokenizer(self.place / name, self.base, template, **special)

    def own(self, directory: Path) -> AdapterChat | None:
        """What the store keeps of a folder, as an engine takes it."""
        kept = directory.with_name(f"{directory.name}-kept")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(directory, kept)
        settle(kept, self.base, Limits())
        return self.chats.own(stored_chat(kept))

    def ids(self, messages: list[Any], params: Any = None, **template: Any) -> list[int]:
        from vllm.renderers.params import ChatParams

        kwargs = {"add_generation_prompt": True, "tokenize": False} | template
        params = params or ChatParams(chat_template_kwargs=kwargs)
        _, (prompt,) = asyncio.run(self.renderer.render_chat_async([messages], params))
        ids: list[int] = prompt["prompt_token_ids"]
        return ids


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    place = tmp_path_factory.mktemp("chat")
    bench = Bench(tiny.build_base(place / "base"), place)
    yield bench
    bench.chats.close()


def judged(directory: Path, messages: list[Any], **template: Any) -> list[int]:
    """What transformers makes of a chat with the tokenizer in a folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids: list[int] = tokenizer.apply_chat_template(
        messages, **{"add_generation_prompt": True, "return_dict": False} | template
    )
    return ids


@pytest.mark.parametrize("template", [PLAIN, PARTS, {"default": PLAIN, "tool_use": TOOLS}])
@pytest.mark.parametrize(
    "special",
    [{}, {"bos_token": None}, {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}],
)
def test_prompts_are_those_of_the_adapters_own_tokenizer(
    bench: Bench, template: Any, special: dict[str, str | None]
) -> None:
    directory = bench.tokenizer("own", template, **special)
    bench.chosen = bench.own(directory)
    parts = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in MESSAGES]
    same = parts if template is PARTS else MESSAGES
    for asked in (MESSAGES, parts):
        assert bench.ids(asked) == judged(directory, same)
    assert bench.ids(MESSAGES[:2]) == judged(directory, same[:2])
    assert bench.ids(MESSAGES, tools=[TOOL]) == judged(directory, same, tools=[TOOL])
    last = {"add_generation_prompt": False, "continue_final_message": True}
    assert bench.ids(MESSAGES, **last) == judged(directory, same, **last)
    tokenizer = bench.renderer.get_tokenizer()
    text = chat_text(tokenizer, same, bench.chosen)
    assert tokenizer.encode(text, add_special_tokens=False) == judged(directory, same)
    bench.chosen = None
    assert bench.ids(MESSAGES) == judged(bench.base, MESSAGES)
    assert chat_text(tokenizer, MESSAGES, None) != text


def test_a_request_that_brings_a_template_or_a_token_is_heard(bench: Bench) -> None:
    from vllm.renderers.params import ChatParams

    directory = bench.tokenizer("heard", {"default": PLAIN, "rag": PARTS})
    bench.chosen = bench.own(directory)
    kwargs = {"add_generation_prompt": True, "tokenize": False}
    theirs = ChatParams(chat_template="Hello", chat_template_kwargs=kwargs)
    named = ChatParams(chat_template="rag", chat_template_kwargs=kwargs)
    assert bench.ids(MESSAGES, theirs) == judged(directory, MESSAGES, chat_template="Hello")
    parts = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in MESSAGES]
    assert bench.ids(MESSAGES, named) == judged(directory, parts, chat_template="rag")
    marked = bench.ids(MESSAGES, eos_token="!")
    assert marked == judged(directory, MESSAGES, eos_token="!")


def test_what_is_the_bases_again_is_no_template_of_its_own(bench: Bench) -> None:
    assert bench.own(bench.tokenizer("same", tiny.CHAT_TEMPLATE)) is None
    assert bench.own(bench.tokenizer("unread", tiny.CHAT_TEMPLATE, eos_token=None)) is None
    assert bench.own(bench.tokenizer("other", tiny.CHAT_TEMPLATE + " ")) is not None


def _refusal() -> type[Exception]:
    """What vLLM tells a client that a template has failed by."""
    if RELEASE < (0, 30):
        return ValueError
    from vllm.exceptions import VLLMValidationError

    kind: type[Exception] = VLLMValidationError
    return kind


def test_a_chat_that_a_template_refuses_is_told_in_its_words(bench: Bench) -> None:
    bench.chosen = bench.own(
        bench.tokenizer("strict", "{{ raise_exception('no system message, please') }}")
    )
    with pytest.raises(_refusal(), match="no system message, please"):
        bench.ids(MESSAGES)
    with pytest.raises(ChatTemplateInvalid, match="no system message, please"):
        chat_text(bench.renderer.get_tokenizer(), MESSAGES, bench.chosen)


def test_one_that_runs_away_fails_alone_and_the_next_is_served(bench: Bench) -> None:
    """It is harmless until a message says so, which no look at it can find out."""
    loops = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    wild = "{% if 'now' in messages[0].content %}" + loops + "{% endif %}" + PLAIN
    directory = bench.tokenizer("wild", wild)
    bench.chosen = bench.own(directory)
    with pytest.raises(_refusal(), match="takes too long"):
        bench.ids([{"role": "user", "content": "now"}])
    assert bench.ids(MESSAGES) == judged(directory, MESSAGES)


def test_a_template_that_cannot_be_used_is_a_failed_load(bench: Bench) -> None:
    broken = ChatTemplates({"default": "{% if %}"}, {})
    with pytest.raises(EngineLoadFailed, match="chat template"):
        bench.chats.own(broken)


def test_late_system_messages_are_asked_of_each_template(bench: Bench) -> None:
    first = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}" + (
        "{{ raise_exception('first') }}{% endif %}{% endfor %}"
    )
    for template, takes in ((PLAIN, True), (first, False)):
        own = bench.own(bench.tokenizer("late", template))
        assert own is not None
        assert own.takes_late_system() is takes


def test_the_stored_file_is_one_that_transformers_reads(bench: Bench, tmp_path: Path) -> None:
    templates = {"default": PLAIN, "tool_use": TOOLS}
    directory = bench.tokenizer("kept", templates, bos_token=None)
    settle(directory, bench.base, Limits())
    assert [path.name for path in directory.iterdir()] == ["tokenizer_config.json"]
    tree = json.loads((directory / "tokenizer_config.json").read_text())
    assert {row["name"]: row["template"] for row in tree.pop("chat_template")} == templates
    assert tree == {"bos_token": None, "eos_token": "<|im_end|>"}
