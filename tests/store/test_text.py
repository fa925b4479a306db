"""JSON with a key twice is refused in a time that grows with its size alone."""

from __future__ import annotations

import json

import pytest

from stacked.store.text import unique_keys


def test_a_key_that_stands_twice_behind_very_many_is_named() -> None:
    rows = "".join(f'"{number}":0,' for number in range(200_000))
    with pytest.raises(ValueError, match="'199999' appears twice"):
        json.loads("{" + rows + '"199999":0}', object_pairs_hook=unique_keys)
