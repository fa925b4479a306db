"""Adapters' own chat templates in vLLM: chosen per request, run in a separate process.

vLLM and transformers treat an adapter's template as they do the base's, except that the sandbox
runs it.

Relies on `ChatParams.chat_template` reaching transformers' `_compile_jinja_template` as the same
object, and on only `render` and `environment.parse` of its result being used
(transformers 4.53 to 5.20).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from stacked.chat import ChatTemplates, Sandbox
from stacked.engine.support import load_chat_template
from stacked.errors import ChatTemplateInvalid, EngineLoadFailed

logger = logging.getLogger("stacked.engine.chat")

# The shortest template of each of the two kinds that vLLM distinguishes.
_KINDS = {
    "string": "",
    "openai": "{% for m in messages %}{% for part in m.content %}{% endfor %}{% endfor %}",
}


class AdapterTemplate(str):
    """A template's text, with the sandbox that runs it."""

    sandbox: Sandbox
    kind: str
    """How vLLM passes a message's content to it: one text, or a list of parts. Found once, after
    the
    size and shape of the text were checked; empty until then."""
    late_system: bool
    """Whether it takes a system message that does not come first."""

    @classmethod
    def made(cls, text: str, sandbox: Sandbox) -> AdapterTemplate:
        """Raises ChatTemplateInvalid."""
        from vllm.renderers import hf

        look = sandbox.look(text)
        made = cls(text)
        made.sandbox, made.kind, made.late_system = sandbox, "", look.late_system is None
        made.kind = hf._detect_content_format(made, default="string")
        return made


@dataclasses.dataclass(frozen=True, eq=False)
class AdapterChat:
    """How one adapter's chats become prompts."""

    templates: ChatTemplates

    def applied(self, params: Any, default: str | None) -> Any:
        """vLLM's ChatParams, with the adapter's template if the request has none.

        A request that may bring a template may also name one of the adapter's.
        """
        kwargs = params.chat_template_kwargs
        asked = None if params.chat_template == default else params.chat_template
        chosen = self.templates.chosen(asked, tools=kwargs.get("tools") is not None)
        if chosen is None:
            return params
        return dataclasses.replace(
            params, chat_template=chosen, chat_template_kwargs={**self.templates.tokens, **kwargs}
        )

    def takes_late_system(self) -> bool:
        """Whether every template takes a system message that does not come first."""
        texts = self.templates.templates.values()
        return all(isinstance(text, AdapterTemplate) and text.late_system for text in texts)


class Chats:
    """The chat templates of one engine's adapters, and the processes that run them."""

    def __init__(self, renderer: Any, template: str | None) -> None:
        """`template` is the engine's `chat_template`: a path, a text, or None for the base's."""
        self._renderer = renderer
        self._template = template
        self._sandbox = Sandbox()
        self.threads = ThreadPoolExecutor(1, "stacked-chat")

    def own(self, chat: ChatTemplates | None) -> AdapterChat | None:
        """An adapter's templates, ready for use; None if they are the base's.

        Raises EngineLoadFailed.
        """
        if chat is None or not self._are_used() or self._is_the_bases(chat):
            return None
        guard()
        try:
            made = {
                name: AdapterTemplate.made(text, self._sandbox)
                for name, text in chat.templates.items()
            }
        except ChatTemplateInvalid as error:
            raise EngineLoadFailed(f"its chat template: {error}") from error
        return AdapterChat(ChatTemplates(made, chat.tokens))

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        self._sandbox.close()

    @cached_property
    def default(self) -> str | None:
        """What vLLM renders with if neither request nor adapter has a template."""
        return load_chat_template(self._template)

    def _are_used(self) -> bool:
        """Whether vLLM renders this base's chats with templates at all."""
        from vllm.renderers.hf import HfRenderer

        config = self._renderer.model_config.hf_config
        used = isinstance(self._renderer, HfRenderer) and config.model_type != "gpt_oss"
        if not used:
            logger.warning(
                "an adapter brings a chat template, and vLLM renders chats of %s models without "
                "one: it is not used",
                config.model_type,
            )
        return used

    def _is_the_bases(self, chat: ChatTemplates) -> bool:
        from vllm.renderers.hf import resolve_chat_template

        tokenizer, config = self._renderer.get_tokenizer(), self._renderer.model_config
        tokens = tokenizer.special_tokens_map
        none: list[Any] = []
        theirs = [
            resolve_chat_template(tokenizer, self.default, tools, model_config=config)
            for tools in (None, none)
        ]
        ours = [chat.chosen(None, tools=tools) for tools in (False, True)]
        same = all(tokens.get(name) == token for name, token in chat.tokens.items())
        return same and ours == theirs


def chat_text(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], chat: AdapterChat | None
) -> str:
    """Messages rendered by the adapter's template (None: the base's)."""
    more: Mapping[str, Any] = {}
    if chat is not None:
        template = chat.templates.chosen(None, tools=False)
        more = {"chat_template": template, **chat.templates.tokens}
    text: str = tokenizer.apply_chat_template(
        [dict(message) for message in messages], tokenize=False, add_generation_prompt=True, **more
    )
    return text


def guard() -> None:
    """Have transformers run adapters' templates in the sandbox, and all others as before."""
    from transformers.utils import chat_template_utils as theirs

    compile_here = theirs._compile_jinja_template
    if getattr(compile_here, "guarded", False):
        return

    def compiled(text: str) -> Any:
        return _Apart(text) if isinstance(text, AdapterTemplate) else compile_here(text)

    compiled.guarded = True  # type: ignore[attr-defined]
    theirs._compile_jinja_template = compiled


class _Apart:
    """In place of a compiled template, whose text is not compiled in this process."""

    def __init__(self, template: AdapterTemplate) -> None:
        self._template = template
        self.environment = SimpleNamespace(parse=self._parsed)

    def render(self, **values: Any) -> str:
        """Special tokens without those that are not set: None here, undefined in the sandbox."""
        given = {
            name: value
            for name, value in values.items()
            if value is not None or not name.endswith("_token")
        }
        return self._template.sandbox.render(self._template, given)

    def _parsed(self, text: str) -> Any:
        """The tree in which vLLM looks for the kind: once known, a short one of that kind."""
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from vllm.renderers.hf import AssistantTracker

        environment = ImmutableSandboxedEnvironment(extensions=[AssistantTracker, loopcontrols])
        return environment.parse(_KINDS.get(self._template.kind, text))
