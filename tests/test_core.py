"""Inference keys: what may be one, and how it travels in a header or a path."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.core import MAX_KEY_LENGTH, check_key, header_form, name_from_bytes
from stacked.errors import KeyInvalid, KeyTooLong

GOOD = [
    "sql",
    "meta-llama/Llama-3.1-8B",
    "SQL writer (v2)",
    "a b",
    "100%",
    "50%-off",
    "a,b;c=d",
    "größe",
    "模型",
    '"quoted"\\',
    "k" * MAX_KEY_LENGTH,
]
BAD = [
    "",
    " a",
    "a ",
    "a\n",
    "a\tb",
    "a\x7f",
    "a\u200bb",  # nothing is seen of it
    "a\u202eb",  # turns the rest around
    "a\u00a0b",
    "\ud800",
    "a%20b",
    "/a",
    "a/",
    "a//b",
    "../a",
    "a/./b",
    ".",
    "ocid1.datasciencemodel.oc1..a",
    "Ã©",  # the two bytes of é in UTF-8
]


@pytest.mark.parametrize("key", GOOD)
def test_key_is_taken_and_survives_every_way(key: str) -> None:
    assert check_key(key) == key
    form = header_form(key)
    assert form.isascii()
    assert name_from_bytes(form.encode()) == key
    assert name_from_bytes(key.encode()) == key
    if key.isascii():
        assert form == key


@pytest.mark.parametrize("key", BAD)
def test_key_that_a_header_or_a_path_would_change_is_refused(key: str) -> None:
    with pytest.raises(KeyInvalid, match="choose another key"):
        check_key(key)


def test_too_long_a_key_is_refused_with_its_length() -> None:
    with pytest.raises(KeyTooLong, match="33"):
        check_key("模" * 33)


@given(st.text(max_size=MAX_KEY_LENGTH))
def test_no_key_that_is_taken_can_be_read_as_another(text: str) -> None:
    try:
        key = check_key(text)
    except KeyInvalid:
        return
    assert key == key.strip()
    assert {unicodedata.category(char)[0] for char in key} <= {"L", "M", "N", "P", "S", "Z"}
    sent = [header_form(key).encode(), key.encode()]
    if max(key) < "\u0100":
        sent.append(key.encode("latin-1"))
    assert {name_from_bytes(each) for each in sent} == {key}
