"""A server that answers what a test tells it to, over real HTTP on this machine.

It must not know the package under test: it is the other end of the wire.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Wire:
    """What the next request is answered with, and what the last one said."""

    url: str = ""
    status: int = 200
    answer: Any = field(default_factory=dict)
    """JSON; a list is a stream of server-sent events; bytes go as they are."""
    path: str = ""
    key: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """By lower-case name."""
    body: dict[str, Any] = field(default_factory=dict)
    asked: threading.Event = field(default_factory=threading.Event)
    """Set once a request has come."""
    may_answer: threading.Event = field(default_factory=threading.Event)
    """Clear it to let requests wait."""


@contextmanager
def wire() -> Iterator[Wire]:
    told = Wire()
    told.may_answer.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.path, told.key = self.path, self.headers.get("model-key")
            told.headers = {name.lower(): text for name, text in self.headers.items()}
            told.asked.set()
            told.may_answer.wait(timeout=60)
            data, kind = _encoded(told.answer)
            self.send_response(told.status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            with suppress(ConnectionError):  # whoever asked may be gone
                self.wfile.write(data)

        def do_POST(self) -> None:
            told.body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield told
    finally:
        told.may_answer.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _encoded(answer: Any) -> tuple[bytes, str]:
    if isinstance(answer, bytes):
        return answer, "text/html"
    if isinstance(answer, list):
        events = [e if isinstance(e, str) else json.dumps(e, ensure_ascii=False) for e in answer]
        return "".join(f"data: {event}\n\n" for event in events).encode(), "text/event-stream"
    return json.dumps(answer).encode(), "application/json"
