"""The Python API on a real engine, without an event loop of the caller's."""

from __future__ import annotations

import pytest

from stacked.errors import EngineDead, KeyUnknown
from stacked.stack import SyncStack
from tests.conftest import PROMPT, TinyModels
from tests.waiting import until

pytestmark = pytest.mark.engine

MESSAGES = [{"role": "user", "content": "Name a colour."}]
SAMPLING = {"max_tokens": 12, "temperature": 0}


def test_an_answer_says_who_made_it(stack: SyncStack) -> None:
    assert stack.keys == ["base", "a", "b"]
    answers = {key: stack.generate(key, PROMPT, **SAMPLING)[0] for key in stack.keys}
    assert len({answer.text for answer in answers.values()}) == 3
    for key, answer in answers.items():
        assert (answer.model, answer.finish_reason, len(answer.token_ids)) == (key, "length", 12)
        assert (answer.digest is None) == (key == "base")
    assert stack.generate(None, [PROMPT], **SAMPLING) == [answers["base"]]
    assert stack.generate(str(answers["a"].model_id), PROMPT, **SAMPLING) == [answers["a"]]
    with pytest.raises(KeyUnknown):
        stack.generate("nobody", PROMPT)


def test_a_stream_is_the_answer_in_pieces(stack: SyncStack) -> None:
    async def pieces() -> list[str]:
        return [piece async for piece in stack._stack.stream("a", PROMPT, **SAMPLING)]

    streamed = stack._portal.call(pieces)
    assert len(streamed) > 1
    assert "".join(streamed) == stack.generate("a", PROMPT, **SAMPLING)[0].text


def test_a_chat_becomes_the_prompt_that_transformers_makes(
    stack: SyncStack, tiny_models: TinyModels
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models.base)
    wanted = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    for key in (None, "base", "a"):
        assert stack.chat_prompt(MESSAGES, key) == wanted
    with pytest.raises(KeyUnknown):
        stack.chat_prompt(MESSAGES, "nobody")


@pytest.mark.last
def test_calls_after_the_death_of_the_engine_say_what_follows(stack: SyncStack) -> None:
    engine = stack._stack.service.vllm.engine
    engine.kill()
    with pytest.raises(EngineDead, match="open it again"):
        stack.generate("a", PROMPT, **SAMPLING)
    until(lambda: engine.dead)
    with pytest.raises(EngineDead, match="open it again"):
        stack.generate("a", PROMPT, **SAMPLING)
