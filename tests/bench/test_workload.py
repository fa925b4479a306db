"""Assignments keep to their adapters and their shape; rows come from what is typed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.bench.workload import ASSIGNMENTS, Row, assign, most_adapters, rows_of
from stacked.errors import ParameterInvalid


@given(
    st.sampled_from(ASSIGNMENTS),
    st.integers(min_value=1, max_value=500),
    st.integers(min_value=0, max_value=200),
    st.integers(min_value=0, max_value=9),
)
def test_every_request_has_one_of_the_adapters(
    way: str, adapters: int, requests: int, seed: int
) -> None:
    assigned = assign(Row(adapters, way), requests, seed)
    assert len(assigned) == requests
    assert all(number is not None and 0 <= number < adapters for number in assigned)
    assert assigned == assign(Row(adapters, way), requests, seed)


def test_no_adapter_is_the_base() -> None:
    assert assign(Row(0), 3, 0) == [None, None, None]


def test_each_assignment_has_its_shape() -> None:
    def counts(way: str) -> list[int]:
        found = Counter(assign(Row(10, way), 10_000, 1))
        return [found[number] for number in range(10)]

    assert counts("round-robin") == [1000] * 10
    assert counts("one-hot") == [10_000, *[0] * 9]
    assert all(900 < count < 1100 for count in counts("uniform"))
    zipf = counts("zipf")
    assert zipf[0] > 1.8 * zipf[1] > 2.5 * zipf[3]
    assert zipf[9] > 0


def test_rows_are_read_from_what_is_typed() -> None:
    rows = rows_of("500,0,1,slots,slots+1,2xslots,64", "uniform,zipf", slots=4, most=64)
    assert [row.adapters for row in rows] == [0, 1, 4, 4, 5, 5, 8, 8, 64, 64]
    assert [row.name for row in rows][:4] == [
        "base",
        "1 adapter",
        "4 adapters, uniform",
        "4 adapters, zipf",
    ]
    assert most_adapters(rows) == 64


@pytest.mark.parametrize(
    ("counts", "ways"), [("1,many", "uniform"), ("", "uniform"), ("-1", "uniform"), ("4", "best")]
)
def test_what_is_no_row_is_refused(counts: str, ways: str) -> None:
    with pytest.raises(ParameterInvalid):
        rows_of(counts, ways, slots=4, most=64)
