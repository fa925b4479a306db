"""What would be read from another machine is told before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacked.store import is_remote


@pytest.mark.parametrize(
    ("source", "remote"),
    [
        ("org/name", True),
        ("org/name@v1", True),
        ("hf://org/name", True),
        ("https://example.com/a.zip", True),
        ("s3://bucket/a", True),
        ("word", True),  # no such path: nothing on this machine is named
        ("./org/name", False),
        ("/org/name", False),
        ("~/org", False),
        ("a/b/c", False),
        ("file:///a/b", False),
        ("here/adapter", False),
    ],
)
def test_is_remote(
    source: str, remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "adapter").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_remote(source) is remote
