"""The engine and its adapters as a Python object, for notebooks, scripts and benchmarks.

The same service as behind HTTP, without HTTP. Engine processes are spawned: a script that opens a
stack needs `if __name__ == "__main__":`.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal

from stacked import bases, config
from stacked.core import Digest, ModelId
from stacked.errors import EngineDead
from stacked.service import Service
from stacked.steps import Progress


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion, and which adapter made it. `digest` is None for the base."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    model: str
    model_id: ModelId
    digest: Digest | None


class Stack:
    """A served group. Use as `async with stacked.open(...) as stack`.

    An engine that dies is not replaced: a script's calls were lost with it, and it knows which to
    repeat. They raise EngineDead; another stack may be opened then.
    """

    def __init__(
        self,
        source: config.Config | str | Path,
        *,
        data_dir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        tree = source if isinstance(source, config.Config) else config.load(Path(source))
        place = Path(data_dir) if data_dir is not None else bases.default_data_dir()
        self.service = Service(tree, place)
        self._progress = progress
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Stack:
        await self.service.start(self._progress)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.close()

    @property
    def keys(self) -> list[str]:
        """The served inference keys, the base's first; a model id for those without one."""
        return [route.label for route in self.service.routing]

    async def generate(
        self,
        key: str | None,
        prompts: str | Sequence[str | Sequence[int]],
        *,
        unit: str | None = None,
        **sampling: Any,
    ) -> list[Answer]:
        """Complete each prompt (text or token ids) on the model of `key` (None: the base).

        `unit` is what gets an arm if the key is an experiment's. `sampling` are vLLM's
        SamplingParams: `max_tokens`, `temperature`, `stop` and so on. Raises KeyUnknown,
        ParameterInvalid, EngineDead.
        """
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        with _ended():
            serving = self.service.vllm
        route, lease = serving.live.admit(_named(key), unit=lambda kind: unit)
        with lease, _ended():
            outputs = await serving.engine.generate(
                given,
                route.handle,
                request_id=f"stack-{next(self._numbers)}",
                sampling=sampling,
                cards=route.cards,
            )
        return [
            Answer(
                text=output.outputs[0].text,
                token_ids=tuple(output.outputs[0].token_ids),
                finish_reason=output.outputs[0].finish_reason,
                model=route.label,
                model_id=route.model_id,
                digest=route.digest,
            )
            for output in outputs
        ]

    async def stream(
        self,
        key: str | None,
        prompt: str | Sequence[int],
        *,
        unit: str | None = None,
        **sampling: Any,
    ) -> AsyncIterator[str]:
        """Like `generate` for one prompt, yielding each new piece of text."""
        with _ended():
            serving = self.service.vllm
        route, lease = serving.live.admit(_named(key), unit=lambda kind: unit)
        with lease, _ended():
            sent = 0
            async for output in serving.engine.stream(
                prompt,
                route.handle,
                request_id=f"stack-{next(self._numbers)}",
                sampling=sampling,
                rank=serving.engine.calls.rank_for(route.cards),
            ):
                text = output.outputs[0].text
                if len(text) > sent:
                    yield text[sent:]
                    sent = len(text)

    def chat_prompt(self, messages: Sequence[dict[str, Any]], key: str | None = None) -> str:
        """The prompt text that the chat template of `key` (None: the base) makes of messages.

        Of an experiment's key, it is that of its first arm. Raises KeyUnknown, ChatTemplateInvalid.
        """
        serving = self.service.vllm
        route = serving.live.routing.resolve_all(_named(key))
        return serving.engine.chat_prompt(messages, route.handle)


class SyncStack:
    """`Stack` for code without an event loop. Use as `with stacked.open_sync(...) as stack`."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._opened = ExitStack()

    def __enter__(self) -> SyncStack:
        with ExitStack() as opened:
            self._portal = opened.enter_context(start_blocking_portal())
            opened.enter_context(self._portal.wrap_async_context_manager(self._stack))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def keys(self) -> list[str]:
        """See `Stack.keys`."""
        return self._stack.keys

    def generate(
        self, key: str | None, prompts: str | Sequence[str | Sequence[int]], **sampling: Any
    ) -> list[Answer]:
        """See `Stack.generate`."""
        return self._portal.call(partial(self._stack.generate, key, prompts, **sampling))

    def chat_prompt(self, messages: Sequence[dict[str, Any]], key: str | None = None) -> str:
        """See `Stack.chat_prompt`."""
        return self._stack.chat_prompt(messages, key)


@contextmanager
def _ended() -> Iterator[None]:
    """Have the death of the engine say what follows."""
    try:
        yield
    except EngineDead as error:
        raise EngineDead(f"{error}. Leave this stack, and open it again to go on") from error


def _named(key: str | None) -> dict[str, str]:
    return {} if key is None else {"key": key}


def open(
    source: config.Config | str | Path,
    *,
    data_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Stack:
    """A stack of a config file or tree; enter it with `async with`. Starting takes 20 to 60 s."""
    return Stack(source, data_dir=data_dir, progress=progress)


def open_sync(
    source: config.Config | str | Path,
    *,
    data_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> SyncStack:
    """The same for code without an event loop; enter it with `with`."""
    return SyncStack(Stack(source, data_dir=data_dir, progress=progress))
