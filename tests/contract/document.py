"""Holding answers against the OpenAPI document that the server itself gives.

It must not know what any operation is for.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import httpx
import schemathesis

_STREAMS = ("text/event-stream", "application/octet-stream")


class Document:
    """A document, and which of its operations have answered with which status."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree
        self.seen: set[tuple[str, str, int]] = set()
        self._schema = schemathesis.openapi.from_dict(tree)
        # What is spelled out goes before what is a name.
        paths = sorted(tree["paths"], key=lambda path: (path.count("{"), -len(path)))
        self._paths = [(re.compile(re.sub(r"{\w+}", "[^/]+", path)), path) for path in paths]

    def place(self, path: str) -> str | None:
        """The path of the document that a request's path is one of."""
        flat = "/" + path.lstrip("/")
        return next((place for pattern, place in self._paths if pattern.fullmatch(flat)), None)

    def check(self, answer: Any, *args: Any, **kwargs: Any) -> None:
        """Raise AssertionError for an answer that the document does not have.

        `answer` is one of `requests`, in whichever copy of it; this is a hook of its sessions.
        """
        method, path = answer.request.method, urlsplit(answer.request.url).path
        place = self.place(path)
        assert place is not None, f"{method} {path} is not in the document"
        operation = self._schema[place][method]
        known = operation.definition.raw["responses"]
        assert str(answer.status_code) in known, f"{method} {place}: {answer.status_code}"
        self.seen.add((method, place, answer.status_code))
        if answer.headers.get("content-type", "").startswith(_STREAMS):
            return  # not ours to read
        request = httpx.Request(method, answer.request.url)
        plain = httpx.Response(
            answer.status_code,
            headers=dict(answer.headers),
            content=answer.content,
            request=request,
        )
        plain.elapsed = answer.elapsed
        if method != "HEAD":
            operation.validate_response(plain)
