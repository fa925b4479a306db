"""A template does what it likes in a process of its own, and nothing to anybody else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from stacked.chat import Sandbox
from stacked.errors import ChatTemplateInvalid

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set n = namespace(x='a' * 1000) %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}{{ n.x }}"
)
# One operation of C code, in which no Python runs.
POWER = "{% set x = 3 ** (messages | length + 50000000) %}{{ x % 7 }}"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if %}", "line 1: Expected an expression"),
        ("one\ntwo {% endfor %}", "line 2: "),
        ("{{ messages | nothing }}", "No filter named 'nothing'"),
        (LOOPS, "takes too long"),
        (POWER, "takes too long"),
        ("{{ 'x' * 10 ** 10 }}", "needs more than 1024 MiB"),
        (DOUBLED, "needs more than 1024 MiB"),
        ("{{ 'x' * 40000000 }}", "the prompt would have 40,000,000 characters"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "recursion"),
        ("{% macro a() %}{% endmacro %}{{ a() }}" * 2000, "too large or too complex"),
    ],
)
def test_what_is_no_template_or_breaks_its_bounds_is_refused(
    sandbox: Sandbox, template: str, said: str
) -> None:
    with pytest.raises(ChatTemplateInvalid) as refused:
        sandbox.look(template)
    assert said in str(refused.value)
    assert sandbox.render("still {{ it }}", {"it": "here"}) == "still here"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{% include '/etc/hostname' %}",
        "{{ messages.append(1) }}",
    ],
)
def test_nothing_of_python_is_reached(sandbox: Sandbox, template: str) -> None:
    with pytest.raises(ChatTemplateInvalid, match=r"unsafe|no loader"):
        sandbox.render(template, {"messages": []})


def test_what_templates_of_known_models_use_is_there(sandbox: Sandbox) -> None:
    values = {"messages": [{"role": "user", "content": "<é> \U0001f600"}], "more": {"b": 1, "a": 2}}
    for template, text in {
        "{{ messages | tojson }}": '[{"role": "user", "content": "<é> \U0001f600"}]',
        "{{ more | tojson(indent=1, sort_keys=true) }}": '{\n "a": 2,\n "b": 1\n}',
        "{% generation %}a{% set x = 1 %}{% endgeneration %}{{ x }}": "a",
        "{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}": "1",
        "{% set year = strftime_now('%Y') | int %}{{ year > 2000 }}": "True",
        "{%- if bos_token is defined %}x{% endif %}\n  {% if true %}\ny\n  {% endif %}": "y\n",
    }.items():
        assert sandbox.render(template, values) == text
    with pytest.raises(ChatTemplateInvalid, match=r"^one after the other$"):
        sandbox.render("{{ raise_exception('one after the other') }}", {})


def test_a_look_tells_what_is_read_and_which_plain_chats_are_refused(sandbox: Sandbox) -> None:
    strict = "{% if messages[2] %}{{ raise_exception('one message') }}{% endif %}{{ eos_token }}"
    look = sandbox.look(strict)
    assert look.variables >= {"messages", "eos_token"}
    assert (look.plain, look.late_system) == (None, "one message")


def test_many_threads_share_one_process_and_get_their_own_answers(sandbox: Sandbox) -> None:
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = sandbox.render("{{ n }}" + " " * number, {"n": number})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"{number}" + " " * number for number in range(20)}


def test_the_process_sees_no_environment_and_ends_when_it_is_closed() -> None:
    os.environ["A_SECRET"] = "told to nobody"
    try:
        with Sandbox() as sandbox:
            assert sandbox.render("x", {}) == "x"
            assert sandbox._running is not None
            process = sandbox._running[0]
            with open(f"/proc/{process.pid}/environ", "rb") as file:
                assert b"A_SECRET" not in file.read()
        assert process.returncode is not None
        sandbox.close()
        assert sandbox.render("again", {}) == "again"
        sandbox.close()
    finally:
        del os.environ["A_SECRET"]
