"""What `check` says about an adapter, with vLLM's class of its base asked in this process.

It must not know what is right or what the engine makes of the adapter.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stacked.engine.causes import missing_package, sentence
from stacked.errors import BaseUnsupported, StackedError
from stacked.store.adaptable import Adaptable
from stacked.store.base import BaseModules
from stacked.store.checks import check_directory
from tests.architectures import engines


def read(base: Path) -> BaseModules:
    """A base whose checks ask vLLM, as `stacked check` makes them."""
    return replace(BaseModules.read(base), engine=Probed(base))


def verdict(base: BaseModules, adapter: Path) -> tuple[str, str]:
    """The code and sentence with which `check` refuses the adapter; empty where it does not."""
    try:
        if base.engine is not None:
            base.engine.ask()
        check_directory(adapter, base, None)
    except StackedError as error:
        return error.code, str(error)
    return "", ""


class Probed:
    """Who tells what the class of a base applies adapters to, without a process for each base."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._told: Adaptable | BaseUnsupported | None = None

    def known(self) -> Adaptable | None:
        return self._told if isinstance(self._told, Adaptable) else None

    def ask(self) -> Adaptable:
        """Raises BaseUnsupported."""
        if self._told is None:
            try:
                self._told = engines.probe(self._base)
            except Exception as error:  # noqa: BLE001  vLLM raises anything; it is told
                self._told = BaseUnsupported(missing_package(str(self._base)) or sentence(error))
        if isinstance(self._told, BaseUnsupported):
            raise self._told
        return self._told
