"""How models that are no adapters are loaded and run."""

from __future__ import annotations

from pydantic import Field

from stacked.config.fields import Frozen


class ModelsConfig(Frozen):
    """What groups without a base may do."""

    code: bool = False
    """Whether code runs that comes with models: score.py, pickles, TorchScript and exported
    programs. It can do what this server's user can; only a container is a sandbox."""
    user: str = ""
    """The user that their processes run as, where this server may change users; its own if none."""
    pythons: dict[str, str] = Field(default_factory=dict)
    """The interpreter of each environment that a runtime.yaml may name (INFERENCE_ENV_SLUG)."""
    deadline_seconds: float = Field(default=60, gt=0)
    """How long a model may take to answer one request or its canary; in Triton also to load."""
    triton: str = Field(default="", pattern="^(https?://.+)?$")
    """The address of a Triton server that has the models, in place of processes of this server."""
