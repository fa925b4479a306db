"""The switch is measured on the real routing and update, and requests are admitted through it."""

from __future__ import annotations

import pytest

from stacked.bench import switch
from stacked.bench.switch import Times, measure_switch
from stacked.core import Digest
from stacked.errors import CanaryFailed
from stacked.steps import Phase


def test_every_repeat_is_a_switch_of_the_whole_group() -> None:
    told = measure_switch(50, 3)
    assert told["adapters"] == 50
    assert told["switch_ms"]["count"] == told["waited_ms"]["count"] == 3
    assert 0 < told["switch_ms"]["least"] <= told["waited_ms"]["most"]


def test_longest_wait_is_one_that_touches_the_window() -> None:
    asking = switch._Asking(None)  # type: ignore[arg-type]
    asking._at = [0.0, 1.0, 4.0, 4.5, 9.0]
    assert asking.longest(4.1, 4.4) == 0.5
    assert asking.longest(3.9, 4.4) == 3.0
    assert asking.longest(10.0, 11.0) == 0.0


def test_refused_adapter_ends_the_measurement() -> None:
    with pytest.raises(CanaryFailed):
        Times().refused(Digest("sha256:0"), CanaryFailed("it changes nothing"))


def test_first_report_of_the_switch_is_the_one_that_counts() -> None:
    times = Times()
    times.step(Phase.SWITCH, 0.0, "")
    first = times.switched
    times.step(Phase.SWITCH, 0.5, "")
    assert times.switched == first > 0
