"""vLLM's own OpenAI app over our engine, with the adapter of each request selected before.

vLLM looks adapters up by name in one table for the whole server. Here that table is replaced by a
view of what was selected for the current request: a name is resolved once, before vLLM sees the
request, and may mean another adapter for the next one.

Relies on the app's `user_middleware` and `middleware_stack`, on
`OpenAIServingModels.lora_requests`, `.model_name`, `.is_base_model` and `.show_available_models`,
and `AsyncLLM.generate(prompt, sampling_params, request_id, ...)`, `.encode(prompt, pooling_params,
request_id, ...)` and `.renderer`, all of which are instance attributes or methods; both send a
request to the engine of `data_parallel_rank`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from stacked import metrics
from stacked.config import FairnessConfig
from stacked.engine.chat import AdapterChat
from stacked.engine.engine import Engine
from stacked.engine.handlers import run_in_place
from stacked.engine.loaded import Loaded
from stacked.engine.pieces import mark
from stacked.engine.rendering import render_by_own_template, render_short_prompts_at_once
from stacked.engine.support import app_builders
from stacked.engine.turns import Turns, share, ticket_of, turns_of

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest


@dataclass(frozen=True, slots=True)
class Report:
    """Who is to know what the engine did for a request, for each prompt of it.

    `count` gets the numbers of tokens of the prompt and of its answers once the engine has
    finished, and whether one ended as it had all of its tokens; `waited` how many seconds it was
    until the engine got the prompt, `output` each of vLLM's outputs.
    """

    count: Callable[[int, int, bool], None]
    waited: Callable[[float], None]
    output: Callable[[Any], None] | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """What one request selects: the adapter (None: the base) and the name in its answers."""

    label: str
    loaded: Loaded | None
    report: Report | None = None
    died: Callable[[], None] | None = None
    """Called when the engine dies under the request, before vLLM answers that."""
    cards: tuple[int, ...] = ()
    """The GPUs, one of which is to answer; () for whichever."""


@dataclass(frozen=True, slots=True)
class Served:
    """One row of `/v1/models`."""

    name: str
    root: str
    parent: str | None
    more: Mapping[str, object]
    """Our fields, in addition to OpenAI's."""


selected: ContextVar[Selection | None] = ContextVar("stacked_selected", default=None)
"""Set by the caller of the app, for the length of one call."""


class _SelectedAdapters(Mapping[str, "LoRARequest"]):
    """`lora_requests` as vLLM reads it: whatever name the request has, its selected adapter.

    Iteration is empty on purpose. vLLM iterates only to guess an adapter from a message's media
    type, and no adapter may ever be guessed.
    """

    def __getitem__(self, name: str) -> LoRARequest:
        selection = selected.get()
        if selection is None or selection.loaded is None:
            raise KeyError(name)
        return selection.loaded.request

    def __contains__(self, name: object) -> bool:
        selection = selected.get()
        return selection is not None and selection.loaded is not None

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


async def build_openai_app(
    engine: Engine, models: Callable[[], Sequence[Served]], fairness: FairnessConfig
) -> Any:
    """vLLM's own FastAPI app over `engine`; `models` returns what is served at that time.

    The app's lifespan must be run by the caller. Every call must set `selected`; otherwise vLLM
    answers that the model does not exist.
    """
    with _root_logger_kept():
        build_app, init_app_state = await asyncio.to_thread(app_builders)  # imports for a second
        tasks = await engine.client.get_supported_tasks()
        app = build_app(engine.args, tasks, engine.client.model_config)
        # CORS is the gateway's; here it would cost a call for each part of each answer.
        others = [each for each in app.user_middleware if each.cls.__name__ != "CORSMiddleware"]
        app.user_middleware, app.middleware_stack = others, None  # SageMaker's part has built it
        run_in_place(app)
        app.state.turns = turns = turns_of(engine.client, fairness)
        client = _in_turn(
            engine.client, turns, lambda: engine.scores_prompts, engine.calls.rank_for
        )
        own_templates = engine.args.trust_request_chat_template
        render_short_prompts_at_once(client.renderer, chats=not own_templates)
        chats = engine.chats
        render_by_own_template(client.renderer, _own_chat, chats.default, chats.threads)
        await init_app_state(client, app.state, engine.args, tasks)
    _route_by_selection(app.state.openai_serving_models, models)
    messages = getattr(app.state, "anthropic_serving_messages", None)
    messages_follow_templates(messages, _own_chat)
    metrics.watch(turns)
    metrics.name_adapters(lambda: _names_by_adapter(models()))
    # On a dead engine vLLM's error handler stops its server; ours decides that itself.
    app.state.server = SimpleNamespace(should_exit=False)
    return app


_NO_PROMPT_LOGPROBS = (
    "prompt_logprobs: logprobs of prompts are wrong with engine.kv_sharing_fast_prefill; leave the "
    "parameter out, or the option"
)


@dataclass(slots=True)
class _Took:
    """Tokens of one request so far: its prompt's, those that had to be computed, its answers'."""

    whole: bool
    """Whether each output has all of the answer so far, and not what is new."""
    prompt: int = 0
    computed: int | None = None
    answered: int = 0
    at_length: bool = False
    aborted: bool = False
    """Whether the engine gave it up, as one that is being ended does."""

    def see(self, output: Any) -> None:
        if isinstance(output.outputs, list):  # a pooling request has no answer of tokens
            new = sum([len(each.token_ids) for each in output.outputs])
            self.answered = new if self.whole else self.answered + new
            for each in output.outputs:
                self.at_length |= each.finish_reason == "length"
                self.aborted |= each.finish_reason == "abort"
        self.prompt = len(output.prompt_token_ids or ())
        self.computed = self.prompt - (output.num_cached_tokens or 0)


def _in_turn(
    client: Any,
    turns: Turns | None,
    scores_prompts: Callable[[], bool] = lambda: True,
    rank_for: Callable[[Sequence[int]], int | None] = lambda cards: None,
) -> Any:
    """Have each request to the engine's client wait for its turn, and reported to its selection.

    At the engine, not from the response: a stream has its usage only on request. Logprobs of a
    prompt are refused unless `scores_prompts`: vLLM passes a request for none but the token's own.
    `rank_for` is the rank of the engine for the cards of a selection.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    generate, encode = client.generate, client.encode

    async def in_turn(
        run: Any, prompt: Any, params: Any, request_id: str, more: dict[str, Any]
    ) -> AsyncIterator[Any]:
        # Here, in the request's own context: a generator that is left may be closed in another.
        selection = selected.get()
        report = selection.report if selection is not None else None
        reported = report.output if report is not None else None
        ticket = ticket_of(prompt, params, more.get("lora_request"))
        took = _Took(whole=getattr(params.output_kind, "name", "") == "CUMULATIVE")
        try:
            if turns is not None:
                began = time.monotonic()
                await turns.wait(ticket, request_id)
                more["priority"] = ticket.rank
                if report is not None:
                    report.waited(time.monotonic() - began)
            else:  # it may go after others, and not before them
                more["priority"] = max(int(ticket.share.batch), more.get("priority", 0))
            if selection is not None and selection.cards:
                more["data_parallel_rank"] = rank_for(selection.cards)
            async for output in run(prompt, params, request_id, **more):
                took.see(output)
                if took.aborted:  # as vLLM does with those of an engine when another one has died
                    raise EngineDeadError
                if reported is not None:
                    reported(output)
                yield output
        except EngineDeadError:
            if selection is not None and selection.died is not None:
                selection.died()
            raise
        finally:
            if turns is not None:
                turns.leave(ticket, took.computed, took.answered)
            if report is not None:
                report.count(took.prompt, took.answered, took.at_length)

    def generates(prompt: Any, sampling_params: Any, request_id: str, **more: Any) -> Any:
        if sampling_params.prompt_logprobs is not None and not scores_prompts():
            raise ValueError(_NO_PROMPT_LOGPROBS)
        if share.get().background:
            mark(sampling_params)
        return in_turn(generate, prompt, sampling_params, request_id, more)

    def encodes(prompt: Any, pooling_params: Any, request_id: str, **more: Any) -> Any:
        return in_turn(encode, prompt, pooling_params, request_id, more)

    client.generate, client.encode = generates, encodes
    return client


def _own_chat() -> AdapterChat | None:
    """The selected adapter's own templates, if any."""
    selection = selected.get()
    return selection.loaded.chat if selection is not None and selection.loaded else None


@contextlib.contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Undo what a library of vLLM's does when it is imported: raise the root logger's levels."""
    root = logging.getLogger()
    own = root.level
    levels = [(handler, handler.level) for handler in root.handlers]
    try:
        yield
    finally:
        root.setLevel(own)
        for handler, level in levels:
            handler.setLevel(level)


def _names_by_adapter(rows: Sequence[Served]) -> dict[str, list[str]]:
    """The inference keys of each served digest."""
    names: dict[str, list[str]] = {}
    for row in rows:
        if row.parent is not None:
            names.setdefault(row.root, []).append(row.name)
    return names


async def model_cards(app: Any) -> list[dict[str, Any]]:
    """The rows of `/v1/models`, as vLLM writes them."""
    listed = await app.state.openai_serving_models.show_available_models()
    return [card.model_dump() for card in listed.data]


def messages_follow_templates(messages: Any, own: Callable[[], AdapterChat | None]) -> None:
    """Have vLLM's handler of Anthropic's messages use what `own` returns at that time.

    It finds out two things about the base's template and caches them: whether it accepts system
    messages that do not come first, and which effort means no thinking. Here each adapter's
    template has its own answers. The attributes are `_merge_inline_system` (vLLM 0.26 to 0.33),
    `_disabled_thinking_effort` (0.31 and 0.32), and `_effort` of its
    `disabled_thinking_effort_resolver` (0.33). A probe is made where an effort is None.
    """
    if hasattr(messages, "_merge_inline_system"):  # else there is no such route here
        _for_each(messages, "_merge_inline_system", own, lambda chat: not chat.takes_late_system())
    for holder, effort in (
        (messages, "_disabled_thinking_effort"),
        (getattr(messages, "disabled_thinking_effort_resolver", None), "_effort"),
    ):
        if getattr(holder, effort, "unknown") is None:  # otherwise the configured one is for all
            _for_each(holder, effort, own, lambda chat: None)


def _for_each(
    holder: Any,
    name: str,
    own: Callable[[], AdapterChat | None],
    first: Callable[[AdapterChat], Any],
) -> None:
    """Have an attribute hold a value for each adapter's chat, initially from `first`."""
    found: WeakKeyDictionary[AdapterChat, Any] = WeakKeyDictionary()
    bases = getattr(holder, name)

    def read(_holder: Any) -> Any:
        chat = own()
        if chat is None:
            return bases
        if chat not in found:
            found[chat] = first(chat)
        return found[chat]

    def write(_holder: Any, value: Any) -> None:
        nonlocal bases
        chat = own()
        if chat is None:
            bases = value
        else:
            found[chat] = value

    kind = type(holder)
    # A property hides the attribute of the same name.
    holder.__class__ = type(kind.__name__, (kind,), {name: property(read, write)})


def _route_by_selection(serving: Any, models: Callable[[], Sequence[Served]]) -> None:
    from vllm.entrypoints.openai.models import serving as vllm_models

    default = serving.base_model_paths[0].name

    def model_name(lora_request: LoRARequest | None = None) -> str:
        selection = selected.get()
        return selection.label if selection else default

    def is_base_model(name: str) -> bool:
        selection = selected.get()
        return selection is not None and selection.loaded is None

    async def show_available_models() -> Any:
        longest = serving.model_config.max_model_len
        return vllm_models.ModelList(
            data=[
                vllm_models.ModelCard(
                    id=row.name,
                    root=row.root,
                    parent=row.parent,
                    max_model_len=longest,
                    permission=[vllm_models.ModelPermission()],
                    **row.more,
                )
                for row in models()
            ]
        )

    serving.lora_requests = _SelectedAdapters()
    serving.model_name = model_name
    serving.is_base_model = is_base_model
    serving.show_available_models = show_available_models
