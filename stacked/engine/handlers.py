"""vLLM's handlers, and the streams that they return, in the task of their request.

To end when the client leaves, each would run in a task of its own. Such a task begins, and is
waited for, in later rounds of the server's loop, and under load a round takes as long as sending
the tokens of a step to all clients: requests spent a third of the time to their first token so.

Relies on a route's `dependant.call`, which FastAPI looks up for each request, and on the two halves
of starlette's `StreamingResponse`. A handler that vLLM has not decorated stays as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any

Handler = Callable[..., Coroutine[Any, Any, Any]]


def run_in_place(app: Any) -> None:
    """Have the handlers of this app run so."""
    from vllm.entrypoints.serve.utils.api_utils import listen_for_disconnect, with_cancellation

    decorated = with_cancellation(len).__code__
    for route in app.routes:
        dependant = getattr(route, "dependant", None)
        if dependant is not None and getattr(dependant.call, "__code__", None) is decorated:
            dependant.call = _in_place(dependant.call.__wrapped__, listen_for_disconnect)


def _in_place(handler: Handler, listen: Handler) -> Handler:
    async def run(*args: Any, **more: Any) -> Any:
        response = await unless(listen(more["raw_request"]), handler(*args, **more))
        if hasattr(response, "stream_response"):
            response.__class__ = _streamed(type(response))  # type: ignore[arg-type]
        return response

    return run


@cache
def _streamed(kind: type) -> type:
    """This kind of stream, sent in place."""

    async def stream(self: Any, scope: Any, receive: Any, send: Any) -> None:
        await unless(self.listen_for_disconnect(receive), self.stream_response(send))
        if self.background is not None:
            await self.background()

    return type(kind.__name__, (kind,), {"__call__": stream})


async def unless(gone: Coroutine[Any, Any, None], work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns; None if `gone` returns before, and then `work` is cancelled."""

    def ended(watching: asyncio.Task[None]) -> None:
        if not watching.cancelled():
            limit.reschedule(0)

    try:
        async with asyncio.timeout(None) as limit:
            watching = asyncio.create_task(gone)
            watching.add_done_callback(ended)
            try:
                return await work
            finally:
                watching.remove_done_callback(ended)
                watching.cancel()
    except TimeoutError:
        if not limit.expired():
            raise
        return None
