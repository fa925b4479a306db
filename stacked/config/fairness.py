"""How requests share the engine when not all of them can run at once."""

from __future__ import annotations

from pydantic import Field

from stacked.config.fields import Frozen


class FairnessConfig(Frozen):
    enabled: bool = True
    """False: requests reach vLLM as they come, and it runs those of resident adapters first."""
    batch_share: float = Field(default=0.1, gt=0, lt=1)
    """What batch requests get of the engine while interactive ones wait."""
    longest_wait_seconds: float = Field(default=10, gt=0)
    """How long a caller or an adapter may be passed over because of its weight, or by newcomers."""
