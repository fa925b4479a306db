"""A small HTTP client of a running Stacked: predict, predict as a stream, list the models.

It must not know how the server works: it speaks the wire and imports neither torch nor vLLM.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

DEFAULT_URL = "http://127.0.0.1:8080"


def default_url() -> str:
    """`$STACKED_URL`, else where `stacked serve` serves by default."""
    return os.environ.get("STACKED_URL") or DEFAULT_URL


class ClientError(Exception):
    """What the server refused, or that there is none: its `code`, and its HTTP `status` or 0.

    Not a StackedError: the code is the server's word, not one of this program's classes.
    """

    def __init__(self, code: str, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True)
class Served:
    """One model that the server lists: how it is called, what it is, whether it serves."""

    key: str
    model_id: str
    digest: str
    rank: int | None
    state: str


class Client:
    """One server, reached at `url`. A context manager; not for several threads at once."""

    def __init__(self, url: str | None = None, *, timeout: float = 600) -> None:
        self.url = (url or default_url()).rstrip("/")
        if "://" not in self.url:
            self.url = f"http://{self.url}"
        # An answer may take minutes on a CPU; that a server is there shows at once.
        self._http = httpx.Client(timeout=httpx.Timeout(timeout, connect=5))

    def predict(self, key: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """POST /predict and return the whole answer. Raises ClientError."""
        with self._asked("POST", "/predict", headers=_headers(key), json=body) as response:
            response.read()
            return _object(response)

    def predict_stream(self, key: str | None, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """POST /predict with `stream: true`; each event as it comes. Raises ClientError."""
        body = {**body, "stream": True}
        with self._asked("POST", "/predict", headers=_headers(key), json=body) as response:
            for data in _events(response.iter_lines()):
                if data == "[DONE]":
                    return
                event = json.loads(data)
                if "error" in event or ("code" in event and "message" in event):
                    raise _error(event, response.status_code)
                yield event
        raise ClientError("StreamCut", "the stream ended without [DONE]; the answer is cut short")

    def models(self) -> list[Served]:
        """GET /v1/models. Raises ClientError."""
        with self._asked("GET", "/v1/models") as response:
            response.read()
            return [_served(entry) for entry in _object(response).get("data", [])]

    @contextmanager
    def _asked(self, method: str, path: str, **rest: Any) -> Iterator[httpx.Response]:
        """An answer whose status is good and whose body is not read yet."""
        try:
            with self._http.stream(method, self.url + path, **rest) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                yield response
        except httpx.ConnectError as error:
            raise ClientError(
                "NoServer",
                f"no server at {self.url}; start one with: stacked serve configs/demo.yaml",
            ) from error
        except httpx.TimeoutException as error:
            raise ClientError("Timeout", f"{self.url} did not answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClientError("ConnectionLost", f"{self.url}: {error or type(error)}") from error

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def text_of(answer: dict[str, Any]) -> str:
    """The words in an answer or in one event of a stream, chat or completion."""
    for choice in answer.get("choices") or ():
        said = choice.get("text")
        for place in ("message", "delta"):
            said = said or (choice.get(place) or {}).get("content")
        return said or ""
    return ""


def _headers(key: str | None) -> dict[str, str]:
    return {"model-key": key} if key else {}


def _events(lines: Iterator[str]) -> Iterator[str]:
    """The data of each server-sent event; an event's data may span several lines."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        value = response.json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ClientError(
            "NotStacked",
            f"{response.url} does not answer as Stacked does: {response.text[:80]!r}",
            response.status_code,
        )
    return value


def _refusal(response: httpx.Response) -> ClientError:
    """An error answer, in the shape of `/v1` or of the rest, or from whatever stands between."""
    try:
        return _error(_object(response), response.status_code)
    except ClientError:
        said = f"HTTP {response.status_code} {response.reason_phrase} from {response.url}"
        return ClientError(f"HTTP{response.status_code}", said, response.status_code)


def _error(body: dict[str, Any], status: int) -> ClientError:
    said = body.get("error", body)
    if not isinstance(said, dict):
        said = {"message": said}
    message = said.get("message") or said.get("detail") or json.dumps(body)[:200]
    return ClientError(str(said.get("code") or said.get("type") or status), str(message), status)


def _served(entry: dict[str, Any]) -> Served:
    rank, root = entry.get("rank"), str(entry.get("root") or "")
    digest = str(entry.get("digest") or (root if root.startswith("sha256:") else ""))
    return Served(
        key=str(entry.get("id", "")),
        model_id=str(entry.get("model_id") or ""),
        digest=digest,
        rank=rank if isinstance(rank, int) else None,
        state=str(entry.get("state") or ""),
    )
