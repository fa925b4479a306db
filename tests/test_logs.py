"""The forms of log lines: nothing in a message makes a second line, or one that is not its own."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacked.logs import JsonLines, TextLines, one_line, shown_url, vllm_logging

FORGED = "x\r\n2026-01-01T00:00:00.000Z INFO stacked.access id=1\x1b[2K\u2028\u202e\x85\ud800"


def record(message: str = "", *, error: bool = False, **more: Any) -> logging.LogRecord:
    raised = None
    if error:
        try:
            raise ValueError(FORGED)
        except ValueError:
            raised = sys.exc_info()
    made = logging.LogRecord("stacked.x", logging.INFO, "f.py", 1, "%s", (message,), raised)
    made.created = 1_767_225_600.25
    made.__dict__.update(more)
    return made


def test_a_line_of_text_says_when_what_and_who() -> None:
    said = TextLines().format(record("größe 大 ok"))
    assert said == "2026-01-01T00:00:00.250Z INFO stacked.x größe 大 ok"


def test_fields_are_words_or_quoted() -> None:
    fields = {"path": "/predict", "key": 'a "b"', "other": "a=b", "empty": "", "n": 3}
    said = TextLines().format(record(fields=fields))
    assert said.endswith(r'stacked.x path=/predict key="a \"b\"" other="a=b" empty="" n=3')


@given(st.text())
def test_no_text_makes_a_second_line(text: str) -> None:
    for said in (TextLines().format(record(text)), TextLines().format(record(fields={"a": text}))):
        assert said.splitlines() == [said]
        said.encode()
    for tree in (record(text), record(fields={"a": text})):
        said = JsonLines().format(tree)
        assert said.isascii()
        assert said.splitlines() == [said]
        assert text in json.loads(said).values()


def test_control_characters_are_escaped_and_others_are_not() -> None:
    assert one_line("a\tb\x1b\ud800é") == "a\\tb\\x1b\\ud800é"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:pass@host:1/a/b.zip?sig=x#y", "https://host:1/a/b.zip"),
        ("https://host/a b\n", "https://host/a b"),
        ("http://[::1", "the address"),
        ("/a/directory", "/a/directory"),
        ("org/name@revision", "org/name@revision"),
        ("http://h/" + "x" * 1000, "http://h/" + "x" * 491 + "…"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(text: str, shown: str) -> None:
    assert shown_url(text) == shown


def test_the_lines_of_a_traceback_are_indented() -> None:
    first, *others = TextLines().format(record("failed", error=True)).split("\n")
    assert first.endswith("stacked.x failed")
    assert all(line.startswith("    ") for line in others)
    assert "Traceback" in others[0]
    assert not any("\x1b" in line for line in others)


def test_an_object_has_the_requests_id_the_process_and_the_traceback() -> None:
    made = record("failed", error=True, request_id="R1", vllm_process_name="EngineCore")
    tree = json.loads(JsonLines().format(made))
    assert tree.pop("traceback").startswith("Traceback")
    assert tree == {
        "time": "2026-01-01T00:00:00.250Z",
        "level": "INFO",
        "logger": "stacked.x",
        "id": "R1",
        "message": "failed",
        "process": "EngineCore",
    }


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_vllms_configuration_is_one_that_logging_accepts(level: str) -> None:
    program = (
        "import json, logging.config, sys\n"
        "logging.config.dictConfig(json.loads(sys.argv[1]))\n"
        "logging.getLogger('vllm.engine').info('one\\ntwo')"
    )
    tree = json.dumps(vllm_logging(level))
    done = subprocess.run([sys.executable, "-c", program, tree], check=True, capture_output=True)
    assert json.loads(done.stdout)["message"] == "one\ntwo"
