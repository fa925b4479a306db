"""An engine that is asked as soon as anybody wants to know, with a line that says so.

A start asks where it must, as the engine itself will tell soon; a check has nobody else to ask.
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
        """What vLLM's class says; half a minute at the first time. Raises BaseUnsupported."""
        return self.ask()

    def ask(self) -> Adaptable:
        known = self._asking.known()
        if known is not None:
            return known
        with Terminal() as progress:
            progress.begin("Asking vLLM what it can adapt (once for each base)")
            return self._asking.ask()
