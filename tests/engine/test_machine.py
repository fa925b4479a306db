"""What a machine has: the GPUs that this process, and one that it starts, may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacked.engine.machine import VISIBLE, cards, visible


def test_cards_are_numbered_as_this_process_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A10, 23028'\necho 'NVIDIA A10, 23028'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv(VISIBLE, raising=False)
    assert cards() == 2
    assert visible([1, 0]) == "1,0"
    monkeypatch.setenv(VISIBLE, "GPU-b, GPU-a,GPU-c")
    assert cards() == 3
    assert visible([0, 2]) == "GPU-b,GPU-c"
    monkeypatch.setenv(VISIBLE, "")
    assert cards() == 0
