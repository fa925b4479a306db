"""Where versions of vLLM differ, so that a test holds for some of them."""

from __future__ import annotations

import pytest

from stacked.engine.support import require_build

RELEASE = require_build().release


def since(major: int, minor: int, why: str) -> pytest.MarkDecorator:
    """For a test of what earlier versions do not have."""
    return pytest.mark.skipif(
        (major, minor) > RELEASE, reason=f"vLLM {major}.{minor} and up: {why}"
    )
