"""vLLM's app as requests to a model reach it: what names the model, the endpoint, the parameters.

It alone knows what stands in the body of such a request.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stacked.callers import caller_of
from stacked.config import PredictEndpoint, UnitKind, UnknownParameters
from stacked.engine import turns
from stacked.engine.loaded import Loaded
from stacked.engine.openai import Selection, selected
from stacked.engine.parameters import INFORMATIVE, UNREAD, is_unread, known_parameters
from stacked.errors import ParameterInvalid, ParameterUnsupported
from stacked.fairness import Share
from stacked.groups.routing import Route
from stacked.serving import Receive, Report, Scope, Send
from stacked.serving.bodies import parse_object, replay, with_fields
from stacked.serving.names import MODEL_HEADERS, names_of, unit_of
from stacked.serving.targets import Target, model_target

logger = logging.getLogger("stacked.serving")

# The parameters that bound an answer, the newest name first.
_ANSWER_TOKENS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_TRUE = frozenset({"true", "1", "yes"})
# Not vLLM's: the length and coding of the body as it was sent, and what names the model by a
# header that vLLM would read once more.
_OURS = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        *(name.encode() for name in MODEL_HEADERS if name.startswith("x-amzn-")),
    }
)


@dataclass(frozen=True, slots=True)
class Call:
    """A request to a model, parsed as far as possible before its model is known."""

    target: Target
    scope: Scope
    body: bytes
    tree: Mapping[str, Any]

    @classmethod
    def read(cls, target: Target, scope: Scope, body: bytes) -> Call:
        """Raises BodyInvalid."""
        return cls(target, scope, body, parse_object(body) if body else {})

    @property
    def names(self) -> dict[str, str]:
        """Every place that names the model, and the name. Raises ParameterInvalid."""
        return names_of(self.target.model, self.scope["headers"], self.tree)

    def unit(self, kind: UnitKind) -> str | None:
        """The unit of an experiment that it is of."""
        return unit_of(kind, self.scope, self.tree)

    def header(self, name: bytes) -> list[str]:
        """The values of a header of OCI's; none on other paths."""
        pairs = self.scope["headers"] if self.target.oci else ()
        return [value.decode("latin-1") for key, value in pairs if key.lower() == name]

    def body_for(self, route: Route[Loaded], streams: bool, defaults: Mapping[str, Any]) -> bytes:
        """The body with the model, the `stream` of headers or the path, and `defaults`."""
        if not self.tree:
            return self.body
        fields = dict(defaults)
        if self.tree.get("model") is None:
            fields["model"] = route.label
        enable = self.header(b"enable-streaming")[:1]
        if streams and (self.target.stream or (enable and enable[0].lower() in _TRUE)):
            fields["stream"] = True
        return with_fields(self.body, self.tree, fields)

    def share(self, route: Route[Loaded]) -> Share:
        """Whose share of the engine it takes.

        Anyone may let others go first: by OpenAI's tier `flex`, or a `priority` above 0, as vLLM
        counts.
        """
        caller = caller_of(self.scope)
        priority = self.tree.get("priority")
        later = isinstance(priority, int) and priority > 0
        return Share(
            caller.id,
            route.label,
            caller_weight=caller.weight,
            key_weight=route.member.weight if route.member else 1.0,
            batch=caller.batch or later or self.tree.get("service_tier") == "flex",
        )

    def scope_for(self, path: str, length: int) -> Scope:
        """The scope of a request to `path` with a whole body: a length, and no transfer coding.

        On `/predict` a body that parsed is JSON, whatever a plain `curl -d` called it; on `/v1`
        vLLM's own rule holds.
        """
        oci = self.target.oci
        dropped = _OURS | {b"content-type"} if oci else _OURS
        headers = [pair for pair in self.scope["headers"] if pair[0].lower() not in dropped]
        headers.append((b"content-length", str(length).encode()))
        if oci:
            headers.append((b"content-type", b"application/json"))
        return {**self.scope, "path": path, "raw_path": path.encode(), "headers": headers}


class Door:
    """One engine's app.

    `predict` is what `/predict` means if a body does not decide it, `max_tokens` the length of an
    answer for which no other is requested.
    """

    def __init__(
        self,
        app: Any,
        *,
        predict: PredictEndpoint | None = None,
        unknown_parameters: UnknownParameters | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.app = app
        self._max_tokens = max_tokens
        self._predict = predict
        self._unknown_parameters = unknown_parameters

    @cached_property
    def known(self) -> Mapping[str, frozenset[str]]:
        """The parameters that the app knows, by path."""
        return known_parameters(self.app)

    @cached_property
    def _takes_post(self) -> list[re.Pattern[str]]:
        """The paths of the app that accept a POST."""
        routes = [one for one in self.app.routes if "POST" in (getattr(one, "methods", None) or ())]
        return [route.path_regex for route in routes]

    async def answer(
        self,
        call: Call,
        route: Route[Loaded],
        receive: Receive,
        send: Send,
        report: Report,
        died: Callable[[], None] | None = None,
        share: Share | None = None,
    ) -> None:
        """Have the app answer by the model of this route. `died` is called if its engine does.

        `share`: whose part of the engine it takes, if not its caller's. Raises ParameterInvalid,
        ParameterUnsupported before anything is sent.
        """
        path = self.path_of(call)
        known = self.known.get(path)
        self._check_parameters(path, call, known)
        streams = known is None or "stream" in known
        body = call.body_for(route, streams, self._defaults(call.tree, known or frozenset()))
        chosen = Selection(route.label, route.handle, report, died, route.cards)
        selection = selected.set(chosen)
        whose = turns.share.set(share or call.share(route))
        try:
            await self.app(call.scope_for(path, len(body)), replay(body, receive), send)
        finally:
            turns.share.reset(whose)
            selected.reset(selection)

    def _defaults(self, tree: Mapping[str, Any], known: frozenset[str]) -> dict[str, int]:
        """The number of tokens of an answer that names none, if it is limited."""
        names = [name for name in _ANSWER_TOKENS if name in known]
        if self._max_tokens is None or any(tree.get(name) is not None for name in names):
            return {}
        return dict.fromkeys(names[:1], self._max_tokens)

    def path_of(self, call: Call) -> str:
        """The path of the app: the request's own, the header `route`'s, or the body's.

        Raises ParameterInvalid for an unknown `route`, or one that contradicts the path.
        """
        named = {route.strip() for route in call.header(b"route")}
        for route in named:
            found = model_target("POST", route)
            taken = any(paths.match(route) for paths in self._takes_post)
            if found is None or found.path is None or not taken:
                raise ParameterInvalid(
                    f"header route: {route[:80]!r} is not an endpoint that runs a model here; "
                    "send one such as /v1/chat/completions, or leave the header out"
                )
        paths = named | ({call.target.path} if call.target.path else set())
        if len(paths) > 1:
            raise ParameterInvalid(f"header route and path differ: {' and '.join(sorted(paths))}")
        if paths:
            return paths.pop()
        if "messages" in call.tree:
            return "/v1/chat/completions"
        if "prompt" in call.tree or self._predict is None:
            return "/v1/completions"
        return self._predict

    def _check_parameters(self, path: str, call: Call, known: frozenset[str] | None) -> None:
        for name, value in call.tree.items():
            if is_unread(path, name, value):
                raise ParameterUnsupported(
                    f"parameter {name!r} has no effect in vLLM, so that the answer would not be "
                    f"the requested one; leave it out (got {value!r:.80})"
                )
        if known is None:
            return
        unknown = call.tree.keys() - known - UNREAD.keys() - INFORMATIVE
        if not unknown:
            return
        # OCI's clients send parameters of their service; OpenAI's may have mistyped one.
        if (self._unknown_parameters or ("ignore" if call.target.oci else "refuse")) == "ignore":
            logger.info("%s: ignored %d unknown parameters", path, len(unknown))
            return
        name = min(unknown)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ParameterInvalid(f"unknown parameter {name[:80]!r}{hint}")
