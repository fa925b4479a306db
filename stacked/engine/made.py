"""What the engine made of one request, kept for whoever compares or scores it.

From the engine's own outputs: they have the tokens, and are the same for every endpoint.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any


class Made:
    """The one answer to the one prompt of a request; `add` gets the engine's outputs as they come.

    Nothing of an answer longer than `most` tokens is kept.
    """

    __slots__ = ("_began", "_id", "_texts", "finish", "most", "prompt", "seconds", "tokens")

    def __init__(self, most: int) -> None:
        self.most = most
        self.prompt: Sequence[int] = ()
        self.tokens: list[int] = []
        self.finish: str | None = None
        """Why it ended; None if it has not, or if there is more than one answer to keep."""
        self.seconds = 0.0
        self._id: str | None = None
        self._texts: list[str] = []
        self._began = time.monotonic()

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def add(self, output: Any) -> None:
        """An output of vLLM's, with what is new in it."""
        if self._id is None:
            self._id, self.prompt = output.request_id, output.prompt_token_ids or ()
        if output.request_id != self._id or not isinstance(output.outputs, list):
            self._refuse()
        for each in output.outputs if self.most else ():
            self.tokens += each.token_ids
            self._texts.append(each.text)
            self.finish, self.seconds = each.finish_reason, time.monotonic() - self._began
            if each.index or len(self.tokens) > self.most:
                self._refuse()

    def _refuse(self) -> None:
        self.most, self.prompt, self.finish = 0, (), None
        self.tokens.clear()
        self._texts.clear()
