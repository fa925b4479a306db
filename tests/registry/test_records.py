"""New identifiers."""

from __future__ import annotations

import re

import pytest

from stacked.core import check_model_id
from stacked.registry import (
    DEPLOYMENT,
    GROUP,
    HISTORY,
    WORK_REQUEST,
    new_id,
)


@pytest.mark.parametrize("kind", [GROUP, HISTORY, DEPLOYMENT, WORK_REQUEST])
def test_new_id_is_a_fresh_ocid_of_its_kind(kind: str) -> None:
    ids = {new_id(kind) for _ in range(1000)}
    assert len(ids) == 1000
    for id in ids:
        assert re.fullmatch(rf"ocid1\.{kind}\.oc1\.\.[0-9a-f]{{32,}}", id)
        assert check_model_id(id) == id


def test_new_id_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="datascienceproject'"):
        new_id("datascienceproject")
