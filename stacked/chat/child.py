"""The process in which adapters' chat templates run: a script that imports Jinja and little else.

It reads JSON for each template to examine or render, and writes JSON. Whatever a template
does affects only this process: a timer ends one that takes too much processor time, and one that
needs too much memory does not get it.

The environment is the one in which transformers renders templates (`render_jinja_template` of 5.19,
documented at https://huggingface.co/docs/transformers/chat_templating_writing).
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2.0
"""Processor time for one request. A long chat takes hundredths of it."""
MEMORY = 1 << 30
"""Bytes of address space, Python and Jinja included."""
LONGEST = 32 * 1024 * 1024
"""Characters of one prompt."""
# vLLM looks for loops over a message's content by walking a template's tree once for each macro and
# assignment in it, in the server's own process. The largest templates of known models need 100,000.
MOST_WALKS = 1_000_000

# What templates raise, on purpose or not. Anything else ends the process, which is also reported.
_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)

# The beginnings of chats, with one message and with two; role and content are enough.
_PROBES = (
    [{"role": "user", "content": "probe"}],
    [
        {"role": "system", "content": "probe"},
        {"role": "user", "content": "probe"},
        {"role": "system", "content": "probe"},
        {"role": "user", "content": "probe"},
    ],
)


class _OutOfBounds(Exception):
    """A template beyond a limit, which is refused."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for trainers; it renders nothing itself."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        said = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_said")
        return jinja2.nodes.CallBlock(call, [], [], said).set_lineno(line)

    def _said(self, caller: jinja2.runtime.Macro) -> str:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


ENVIRONMENT = _environment()


@lru_cache(maxsize=256)
def compiled(template: str) -> jinja2.Template:
    return ENVIRONMENT.from_string(template)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The reply: `text`, or for a template that is only examined, its properties."""
    template = compiled(request["template"])
    if "values" in request:
        return {"text": rendered(template, request["values"])}
    return looked_at(request["template"], template)


def rendered(template: jinja2.Template, values: dict[str, Any]) -> str:
    text = template.render(**values)
    if len(text) > LONGEST:
        raise _OutOfBounds(f"the prompt would have {len(text):,} characters")
    return text


def looked_at(text: str, template: jinja2.Template) -> dict[str, Any]:
    """The variables that it reads, and the errors of two plain chats (None: no error)."""
    tree = ENVIRONMENT.parse(text)
    nodes = sum(1 for _ in _nodes(tree))
    walked = (jinja2.nodes.Macro, jinja2.nodes.Assign, jinja2.nodes.For)
    walks = nodes * (1 + sum(1 for _ in tree.find_all(walked)))
    if walks > MOST_WALKS:
        raise _OutOfBounds(f"the template is too large or too complex ({nodes:,} nodes)")
    found = [_probed(template, messages) for messages in _PROBES]
    return {
        "variables": sorted(jinja2.meta.find_undeclared_variables(tree)),
        "plain": found[0],
        "late_system": found[1],
    }


def _nodes(node: jinja2.nodes.Node) -> Iterable[jinja2.nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _nodes(child)


def _probed(template: jinja2.Template, messages: list[dict[str, str]]) -> str | None:
    try:
        rendered(template, {"messages": messages, "add_generation_prompt": True})
    except _FAULTS as error:
        return _reason(error)
    return None


def _reason(error: BaseException) -> str:
    line = getattr(error, "lineno", None)
    text = str(error)[:500] or type(error).__name__
    return f"line {line}: {text}" if line else text


def _confine() -> None:
    """From here on memory is limited, and nothing can be written to disk."""
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS does not have all of them
            resource.setrlimit(kind, (most, most))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's, which the server also gets
    _confine()
    pipe = Connection(int(sys.argv[1]))
    while True:
        request = pipe.recv_bytes()  # EOFError ends this process: the server is gone
        # Its default action ends the process even inside one long operation, where no handler runs.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            reply = json.dumps(answer(json.loads(request)))
        except MemoryError:
            reply = json.dumps({"error": f"the template needs more than {MEMORY >> 20} MiB"})
        except (_OutOfBounds, *_FAULTS) as error:
            reply = json.dumps({"error": _reason(error)})
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send_bytes(reply.encode())


if __name__ == "__main__":
    main()
