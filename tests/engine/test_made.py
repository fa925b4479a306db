"""What is kept of the engine's outputs: one answer, and nothing of what cannot be compared."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from stacked.engine.made import Made


def output(
    text: str, *tokens: int, finish: str | None = None, index: int = 0, id: str = "1"
) -> Any:
    one = SimpleNamespace(index=index, text=text, token_ids=tokens, finish_reason=finish or None)
    return SimpleNamespace(request_id=id, prompt_token_ids=[1, 2, 3], outputs=[one])


def test_parts_of_a_stream_are_one_answer() -> None:
    made = Made(10)
    made.add(output("a ", 7))
    assert made.finish is None
    made.add(output("b", 8, 9, finish="stop"))
    assert (made.prompt, made.text, made.tokens) == ([1, 2, 3], "a b", [7, 8, 9])
    assert made.finish == "stop"
    assert made.seconds >= 0


def test_nothing_is_kept_of_several_prompts_answers_and_of_too_many_tokens() -> None:
    pooled = SimpleNamespace(request_id="1", prompt_token_ids=[1], outputs=object())
    for outputs in (
        [output("a", 7, finish="stop"), output("b", 7, finish="stop", id="2")],
        [output("a", 7, finish="stop"), output("b", 7, finish="stop", index=1)],
        [output("a", *range(11), finish="stop")],
        [pooled],
    ):
        made = Made(10)
        for each in (*outputs, output("late", 1, finish="stop")):
            made.add(each)
        assert (made.finish, made.text, made.tokens, made.prompt) == (None, "", [], ())
        assert made.most == 0
