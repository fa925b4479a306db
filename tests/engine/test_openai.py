"""Anthropic's messages ask each adapter's template what vLLM asks the base's once."""

from __future__ import annotations

import asyncio

import pytest

from stacked.chat import ChatTemplates
from stacked.engine.chat import AdapterChat, AdapterTemplate
from stacked.engine.openai import messages_follow_templates

pytestmark = pytest.mark.oldest


class Messages:
    """The part of vLLM's handler that asks, as it is named there; `probes` counts."""

    def __init__(self, effort: str | None = None) -> None:
        self._merge_inline_system = False
        self._disabled_thinking_effort = effort
        self.probes = 0

    async def _probe_disabled_thinking_effort(self) -> str:
        self.probes += 1
        return f"effort {self.probes}"

    async def _get_disabled_thinking_effort(self) -> str:
        if self._disabled_thinking_effort is None:
            self._disabled_thinking_effort = await self._probe_disabled_thinking_effort()
        return self._disabled_thinking_effort

    def effort(self) -> str:
        return asyncio.run(self._get_disabled_thinking_effort())


def chat(*, late_system: bool) -> AdapterChat:
    template = AdapterTemplate("{{ messages }}")
    template.late_system = late_system
    return AdapterChat(ChatTemplates({"default": template}, {}))


def test_each_template_is_asked_and_the_bases_answers_stay() -> None:
    messages, one, other = Messages(), chat(late_system=False), chat(late_system=True)
    chosen: list[AdapterChat | None] = []
    messages_follow_templates(messages, lambda: chosen[-1])
    merges, efforts = [], []
    for own in (one, None, other, one, None, other):
        chosen.append(own)
        merges.append(messages._merge_inline_system)
        efforts.append(messages.effort())
    assert merges == [True, False, False] * 2
    assert efforts == ["effort 1", "effort 2", "effort 3"] * 2


def test_an_effort_that_was_configured_is_everybodys() -> None:
    messages = Messages("low")
    messages_follow_templates(messages, lambda: chat(late_system=True))
    assert messages.effort() == "low"
    assert messages.probes == 0


@pytest.mark.parametrize("messages", [None, object()])
def test_where_there_is_no_such_route_nothing_is_done(messages: object) -> None:
    messages_follow_templates(messages, lambda: None)


class Resolver:
    """Where vLLM 0.33 asks for the effort."""

    def __init__(self) -> None:
        self._effort: str | None = None
        self.probes = 0

    async def resolve_for(self) -> str:
        if self._effort is None:
            self.probes += 1
            self._effort = f"effort {self.probes}"
        return self._effort


def test_the_efforts_resolver_is_followed_where_there_is_one() -> None:
    class Newer:
        disabled_thinking_effort_resolver = Resolver()
        _merge_inline_system = True

    messages, one = Newer(), chat(late_system=True)
    chosen: list[AdapterChat | None] = [None]
    messages_follow_templates(messages, lambda: chosen[-1])
    efforts = []
    for own in (one, None, one, None):
        chosen.append(own)
        efforts.append(asyncio.run(messages.disabled_thinking_effort_resolver.resolve_for()))
    assert efforts == ["effort 1", "effort 2"] * 2
    assert messages._merge_inline_system is True
