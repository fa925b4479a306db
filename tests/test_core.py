"""Inference keys and contents: what may be a key, how it travels, what identifies a content."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.core import (
    MAX_KEY_LENGTH,
    Adapter,
    Code,
    Digest,
    Member,
    ModelFiles,
    ModelGroup,
    ModelId,
    Runtime,
    check_digest,
    check_key,
    header_form,
    name_from_bytes,
)
from stacked.errors import GroupInvalid, KeyInvalid, KeyTooLong

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


def digest(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


FILES = ModelFiles(digest(1), Path("/models/1"), 10, Runtime.DATA)
CODE = Code(digest(2), Path("/codes/2"))


def test_another_score_py_makes_another_content_of_the_same_files() -> None:
    loaded = FILES.loaded_by(CODE)
    changed = FILES.loaded_by(replace(CODE, digest=digest(3)))
    assert len({FILES.digest, loaded.digest, changed.digest}) == 3
    assert check_digest(loaded.digest) == FILES.loaded_by(CODE).digest
    assert loaded.stored == {digest(1), digest(2)}
    assert changed.stored == {digest(1), digest(3)}


def test_content_without_code_needs_its_own_files_alone() -> None:
    assert FILES.stored == {digest(1)}
    assert Adapter(digest(4), Path("/a"), 1, 8, ()).stored == {digest(4)}


def test_group_without_a_base_needs_files_and_code_of_each_member() -> None:
    members = (Member(ModelId("m1"), FILES.loaded_by(CODE), "a"), Member(ModelId("m2"), FILES, "b"))
    group = ModelGroup("g", None, members, kind="HOMOGENEOUS")
    assert group.stored == {digest(1), digest(2)}
    with pytest.raises(GroupInvalid, match="used twice"):
        ModelGroup("g", None, (members[0], replace(members[1], key="a")))
