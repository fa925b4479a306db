"""The experts of a mixture, which cannot be adapted on a CPU: their names, and what adapts them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stacked.core import Adapter, short
from stacked.errors import AdapterUnsupported
from stacked.store.files import WEIGHTS_FILE
from stacked.store.pairs import pair_up
from stacked.store.tensors import read_header


def is_expert(module: str) -> bool:
    """Whether a module belongs to one routed expert or to all; shared experts do not count."""
    return "experts" in module.split(".")


def check_no_experts(adapters: Sequence[Adapter], modules: Iterable[str]) -> None:
    """Refuse adapters of experts among those of a base. Raises AdapterUnsupported.

    Only adapters with a module named like an expert's are opened.
    """
    names = {module.rpartition(".")[2] for module in modules if is_expert(module)}
    for adapter in adapters:
        if names.isdisjoint(adapter.target_modules):
            continue
        try:
            found = [*filter(is_expert, pair_up(read_header(adapter.path / WEIGHTS_FILE)))]
        except OSError:  # a start checks all files, and reports missing ones
            continue
        if found:
            raise AdapterUnsupported(
                f"adapter {short(adapter.digest)} adapts experts ({len(found)} modules, the first "
                f"is {found[0]}), and vLLM's kernels for experts on a CPU support none; serve "
                "it on a GPU, or train it on the other layers"
            )
