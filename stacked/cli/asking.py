"""An engine's probe that runs as soon as its answer is needed, with a progress line.

A start avoids the probe where it can, as the engine itself will give the answer; a check cannot.
"""

from __future__ import annotations

from stacked.engine.adaptable import Asking
from stacked.store.adaptable import Adaptable
from stacked.terminal import Terminal


class AskedAtOnce:
    """See `stacked.store.adaptable.Engine`."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def known(self) -> Adaptable:
        """The answer of vLLM's class; half a minute the first time. Raises BaseUnsupported."""
        return self.ask()

    def ask(self) -> Adaptable:
        known = self._asking.known()
        if known is not None:
            return known
        with Terminal() as progress:
            progress.begin("Finding what vLLM can adapt (once for each base)")
            return self._asking.ask()
