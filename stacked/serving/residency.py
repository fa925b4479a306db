"""Where the engine has each content, for metrics and the status."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from stacked import metrics
from stacked.engine.loaded import Resident
from stacked.errors import EngineError
from stacked.groups.routing import Routing
from stacked.serving import Serving

# How long metrics and the status wait for a look into the engine.
_LOOK_SECONDS = 1.0


async def resident_in(serving: Serving) -> Resident | None:
    """What the engine holds; None if it does not say so soon."""
    with contextlib.suppress(EngineError, TimeoutError):
        async with asyncio.timeout(_LOOK_SECONDS):
            return await serving.resident()
    return None


def show_residency(routing: Routing[Any], there: Resident) -> None:
    """Have the metrics show where the content of each key is, and its size."""
    arms = (route for each in routing.arms.values() for route in each.routes.values())
    served = (*(route for route in routing if route.exposure is None), *arms)
    numbers = {route.labels: route.handle.number for route in served if route.handle}
    metrics.resident({each: (n in there.host, n in there.slots) for each, n in numbers.items()})
    sizes = there.sizes
    metrics.model_bytes({each: sizes[n] for each, n in numbers.items() if n in sizes})
