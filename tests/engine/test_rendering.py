"""Short prompts rendered at once are what vLLM's own way makes of them; long ones take that way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from stacked.engine.rendering import SHORT_CHARACTERS, render_short_prompts_at_once
from tests import tiny

pytestmark = pytest.mark.oldest

LONG = (tiny._CORPUS * 2)[: SHORT_CHARACTERS + 1]


def make_renderer(base: Any) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.renderers import renderer_from_config

    args = AsyncEngineArgs(model=str(base), enforce_eager=True, max_model_len=1024)
    return renderer_from_config(args.create_engine_config())


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """vLLM's renderer as it is, and one that was told."""
    base = tiny.build_base(tmp_path_factory.mktemp("rendering") / "base")
    told = make_renderer(base)
    render_short_prompts_at_once(told, chats=True)
    return make_renderer(base), told


def run(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, int]:
    """What it returns, and how many tasks it took beside its own."""
    begun: list[Any] = []

    def factory(loop: asyncio.AbstractEventLoop, made: Any, **kwargs: Any) -> Any:
        begun.append(made)
        return asyncio.Task(made, loop=loop, **kwargs)

    async def counted() -> tuple[Any, int]:
        asyncio.get_running_loop().set_task_factory(factory)
        return await coroutine, len(begun)

    return asyncio.run(counted())


def untimed(inputs: list[Any]) -> list[Any]:
    return [{key: value for key, value in each.items() if key != "arrival_time"} for each in inputs]


def chat(renderer: Any, content: Any, **template: Any) -> tuple[Any, int]:
    from vllm.renderers.params import ChatParams

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    kwargs = {"add_generation_prompt": True, "tokenize": False} | template
    return run(renderer.render_chat_async([messages], ChatParams(chat_template_kwargs=kwargs)))


@pytest.mark.parametrize(
    "prompts",
    [
        [{"prompt": "What is the capital of France?"}],
        [{"prompt": ""}],
        [{"prompt": "sky 🚀 Straße\n\n\ttab"}],
        [{"prompt_token_ids": [5, 7, 11]}],
        [{"prompt": "one"}, {"prompt": "two"}, {"prompt_token_ids": [3]}],
    ],
)
def test_a_short_prompt_takes_no_task_and_gives_the_same(
    renderers: tuple[Any, Any], prompts: list[Any]
) -> None:
    theirs, handovers = run(renderers[0].render_cmpl_async(prompts))
    ours, none = run(renderers[1].render_cmpl_async(prompts))
    assert untimed(ours) == untimed(theirs)
    assert none == 0 < handovers
    assert all(each["arrival_time"] > 0 for each in ours)


@pytest.mark.parametrize(
    "prompts", [[{"prompt": LONG}], [{"prompt": LONG[: len(LONG) // 2 + 1]}] * 2]
)
def test_long_prompts_take_vllms_way(renderers: tuple[Any, Any], prompts: list[Any]) -> None:
    theirs, handovers = run(renderers[0].render_cmpl_async(prompts))
    ours, as_many = run(renderers[1].render_cmpl_async(prompts))
    assert untimed(ours) == untimed(theirs)
    assert as_many == handovers > 0


def test_what_is_not_text_alone_takes_vllms_way(renderers: tuple[Any, Any]) -> None:
    prompt = {"prompt": "look", "multi_modal_data": {"image": object()}}
    for renderer in renderers:
        with pytest.raises(Exception, match=r"(?i)multi-?modal|text-only"):
            run(renderer.render_cmpl_async([prompt]))
    with pytest.raises(ValueError, match="at least one prompt"):
        run(renderers[1].render_cmpl_async([]))


def test_a_short_chat_takes_no_task_and_gives_the_same(renderers: tuple[Any, Any]) -> None:
    (theirs, inputs), handovers = chat(renderers[0], "Name a colour.")
    (ours, same), none = chat(renderers[1], "Name a colour.")
    assert ours == theirs
    assert untimed(same) == untimed(inputs)
    assert none == 0 < handovers


@pytest.mark.parametrize("content", [LONG, [{"type": "text", "text": "a part"}]])
def test_other_chats_take_vllms_way(renderers: tuple[Any, Any], content: Any) -> None:
    (theirs, inputs), handovers = chat(renderers[0], content)
    (ours, same), as_many = chat(renderers[1], content)
    assert (ours, untimed(same)) == (theirs, untimed(inputs))
    assert as_many == handovers > 0


@pytest.mark.parametrize(
    "template",
    [
        {"tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}]},
        {"documents": [{"title": "a", "text": "b"}]},
        {"persona": LONG},
    ],
)
def test_more_for_the_template_to_read_takes_vllms_way(
    renderers: tuple[Any, Any], template: dict[str, Any]
) -> None:
    assert chat(renderers[1], "look", **template)[1] > 0
    assert chat(renderers[1], "look", persona="brief", depth=2, tools=None)[1] == 0


def test_a_message_that_is_an_object_takes_vllms_way() -> None:
    taken: list[Any] = []

    async def asynchronous(conversations: Any, params: Any) -> str:
        taken.append(conversations)
        return "vLLM's"

    renderer = SimpleNamespace(render_cmpl_async=None, render_chat_async=asynchronous)
    render_short_prompts_at_once(renderer, chats=True)
    params = SimpleNamespace(chat_template=None, chat_template_kwargs={})
    assert run(renderer.render_chat_async([[object()]], params))[0] == "vLLM's"
    assert len(taken) == 1


def test_chats_are_left_alone_where_requests_bring_templates(
    tmp_path: Any, renderers: tuple[Any, Any]
) -> None:
    renderer = make_renderer(tiny.build_base(tmp_path / "base"))
    render_short_prompts_at_once(renderer, chats=False)
    assert chat(renderer, "look")[1] > 0
    assert run(renderer.render_cmpl_async([{"prompt": "look"}]))[1] == 0
