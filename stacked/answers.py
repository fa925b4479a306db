"""What a server's response holds, as JSON of the expected form, or why it does not."""

from __future__ import annotations

import json
from typing import Any

import httpx


class ClientError(Exception):
    """A refusal by the server, or no server: its `code`, and its HTTP `status` or 0.

    Not a StackedError: the code comes from the server, not from this program's classes.
    """

    def __init__(self, code: str, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


def object_of(response: httpx.Response) -> dict[str, Any]:
    value = _json(response)
    if not isinstance(value, dict):
        raise not_stacked(response)
    return value


def array_of(response: httpx.Response) -> list[dict[str, Any]]:
    value = _json(response)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise not_stacked(response)
    return value


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def not_stacked(response: httpx.Response) -> ClientError:
    said = f"{response.url} does not answer as Stacked does: {response.text[:80]!r}"
    return ClientError("NotStacked", said, response.status_code)


def refusal(response: httpx.Response) -> ClientError:
    """An error response, in the shape of `/v1` or of the rest, or from a proxy in between."""
    try:
        return error_in(object_of(response), response.status_code)
    except ClientError:
        said = f"HTTP {response.status_code} {response.reason_phrase} from {response.url}"
        return ClientError(f"HTTP{response.status_code}", said, response.status_code)


def error_in(body: dict[str, Any], status: int) -> ClientError:
    said = body.get("error", body)
    if not isinstance(said, dict):
        said = {"message": said}
    message = said.get("message") or said.get("detail") or json.dumps(body)[:200]
    return ClientError(str(said.get("code") or said.get("type") or status), str(message), status)
