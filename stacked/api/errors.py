"""Errors to status and body: the one table, and the two shapes that clients read.

OpenAI's shape on `/v1`, `{"code", "message"}` elsewhere. It must not decide what an error is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from stacked import errors, metrics
from stacked.config import said_of
from stacked.errors import BodyInvalid, LimitExceeded, ParameterInvalid, StackedError
from stacked.serving.targets import is_control, is_plain

# The nearest class up the tree decides.
STATUS: dict[type[errors.StackedError], int] = {
    errors.StackedError: 500,
    errors.ConfigError: 400,
    errors.SetupError: 500,
    errors.BaseUnsupported: 400,
    errors.PlanError: 400,
    errors.AdapterError: 400,
    errors.SourceNotFound: 404,
    errors.SourceRefused: 403,
    errors.SourceUnreachable: 502,
    errors.AdapterTooLarge: 413,
    errors.AdapterAbsent: 404,
    errors.StoreDamaged: 500,
    errors.RoutingError: 400,
    errors.KeyMissing: 400,
    errors.KeyUnknown: 404,
    errors.ModelQuarantined: 503,
    errors.DrainExpired: 409,
    errors.KeyInUse: 409,
    errors.RequestError: 400,
    errors.BodyTooLarge: 413,
    errors.BodyTooSlow: 408,
    errors.TooManyRequests: 429,
    errors.TimeExceeded: 504,
    errors.EncodingUnsupported: 415,
    errors.LengthRequired: 411,
    errors.RangeInvalid: 416,
    errors.Unsupported: 501,
    errors.NotAllowed: 403,
    errors.NotAuthorizedOrNotFound: 404,
    errors.ExternalServerIncorrectState: 409,
    errors.NotAuthenticated: 401,
    errors.InvalidatedRetryToken: 409,
    errors.FeedbackUnknown: 404,
    errors.RegistryError: 500,
    errors.RecordAbsent: 404,
    errors.RecordConflict: 409,
    errors.RecordInvalid: 400,
    errors.RecordStale: 412,
    errors.IllegalMove: 409,
    errors.PageInvalid: 400,
    errors.UpdateError: 400,
    errors.EvaluationError: 400,
    errors.UpdateInProgress: 409,
    errors.EngineError: 500,
    errors.EngineDead: 503,
    errors.NotReady: 503,
}

# OCI's codes of these cases; every other error has its own code.
OCI_CODES: dict[type[errors.StackedError], str] = {
    errors.RecordAbsent: "NotAuthorizedOrNotFound",
    errors.RecordConflict: "Conflict",
    errors.IllegalMove: "Conflict",
    errors.RecordInvalid: "InvalidParameter",
    errors.RecordStale: "NoEtagMatch",
    errors.PageInvalid: "InvalidParameter",
    errors.ParameterInvalid: "InvalidParameter",
    errors.GroupInvalid: "InvalidParameter",
    errors.ConfigInvalid: "InvalidParameter",
    errors.EngineOptionInvalid: "InvalidParameter",
    errors.BodyInvalid: "CannotParseRequest",
    errors.BodyTooLarge: "PayloadTooLarge",
    errors.NotReady: "ServiceUnavailable",
    errors.Unsupported: "MethodNotImplemented",
}

# OpenAI's types; its clients choose their exception class by status.
_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
# Headers that HTTP requires with a refusal: what would be accepted.
_WANTED = {
    408: {"connection": "close"},  # the rest of the body would be read as the next request
    415: {"accept-encoding": "gzip, deflate"},
}
_OPENAI_CODES: dict[type[errors.StackedError], str] = {
    errors.TooManyRequests: "rate_limit_exceeded"
}

# vLLM's own errors carry no stable code but their status.
_PLAIN_CODES = {
    400: "InvalidParameter",
    401: "NotAuthenticated",
    404: "NotFound",
    405: "MethodNotAllowed",
    413: "PayloadTooLarge",
    415: "UnsupportedMediaType",
    422: "InvalidParameter",
    503: "ServiceUnavailable",
}

_MISSING = ("missing", "union_tag_not_found")

# A fault of ours: the details are in the log, under the request's id.
INTERNAL = "the server failed at this request; its log says why, under this opc-request-id"
INTERNAL_CODE = "InternalServerError"


def status_of(error: errors.StackedError) -> int:
    """The HTTP status of an error, found through its classes."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def oci_code(error: errors.StackedError, path: str) -> str:
    """The code of an error at a path."""
    return OCI_CODES.get(type(error), error.code) if is_control(path) else error.code


def openai_body(code: str, message: str, status: int, param: str | None = None) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def plain_body(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message}


def body_of(error: StackedError, plain: bool, code: str | None = None) -> dict[str, Any]:
    """The body of an error of ours: OpenAI's shape, where a limit is the `param`, or `plain`.

    `code`: the surface's, if it is not the error's own.
    """
    if plain:
        return plain_body(code or error.code, str(error))
    limit = error.limit if isinstance(error, LimitExceeded) else None
    shown = _OPENAI_CODES.get(type(error), code or error.code)
    return openai_body(shown, str(error), status_of(error), limit)


def refusal(
    error: StackedError, plain: bool, code: str | None = None
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """The status, headers and body (see `body_of`) of the answer to a request; counts it."""
    status = status_of(error)
    headers = dict(_WANTED.get(status, {}))
    if isinstance(error, LimitExceeded):
        metrics.refused(error.limit)
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, ceil(error.retry_after)))
    return status, headers, body_of(error, plain, code)


def fault_of(errors: Sequence[Any]) -> tuple[bool, str]:
    """The first of pydantic's errors: whether something is missing, and the sentence.

    What is missing comes before what is wrong.
    """
    first = min(errors, key=lambda error: error["type"] not in _MISSING)
    loc = list(first["loc"])
    if loc and loc[0] in ("body", "query", "header", "path"):
        del loc[0]
    if loc and str(loc[0]).isupper():  # which model of a union was taken
        del loc[0]
    if first["type"] == "union_tag_not_found":
        loc.append(first["ctx"]["discriminator"].strip("'"))
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in loc).lstrip(".") or "body"
    if first["type"] in _MISSING:
        return True, f"{place} is missing"
    return False, f"{place}: {said_of(first)}"


def not_served(method: str, path: str, status: int) -> str | None:
    """The sentence for a path that is not there, or not for this verb; None for other statuses."""
    return {
        404: f"there is nothing at {method} {path}",
        405: f"{method} is not for {path}",
    }.get(status)


def to_plain(body: bytes, status: int) -> bytes:
    """An error of vLLM's in our plain shape; anything else becomes the message."""
    message, code = body.decode("utf-8", "replace"), None
    try:
        tree = json.loads(body)
        error = tree["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    if not isinstance(code, str):
        code = _code_of(status)
    return json.dumps(plain_body(code, message)).encode()


def to_tensors(body: bytes, status: int) -> bytes:
    """An error in our plain shape with what the Open Inference Protocol's clients show."""
    tree = json.loads(body or b"{}")
    return json.dumps({"error": tree.get("message", ""), **tree}).encode()


def to_openai(body: bytes, status: int, said: str | None) -> bytes:
    """An error of vLLM's app in OpenAI's shape: most are, and what its framework says is not.

    `said` is our sentence for this status, in place of the framework's.
    """
    try:
        tree = json.loads(body)
    except ValueError:
        tree = body.decode("utf-8", "replace")
    if isinstance(tree, dict) and isinstance(tree.get("error"), dict):
        return body
    detail = tree.get("detail", tree) if isinstance(tree, dict) else tree
    message = said or (detail if isinstance(detail, str) else json.dumps(detail))
    return json.dumps(openai_body(_code_of(status), message, status)).encode()


def _code_of(status: int) -> str:
    return _PLAIN_CODES.get(status, "InternalServerError" if status >= 500 else "InvalidParameter")


def handle_errors(app: FastAPI) -> None:
    """Every error is returned in the shape of its path."""
    app.exception_handler(StackedError)(_stacked_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(Exception)(_internal_error)


async def _stacked_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StackedError)
    path = request.url.path
    status, headers, body = refusal(error, is_plain(path), oci_code(error, path))
    return JSONResponse(body, status_code=status, headers=headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    if errors[0]["type"] == "json_invalid":
        return await _stacked_error(request, BodyInvalid("the body is not valid JSON"))
    missing, sentence = fault_of(errors)
    if missing and is_control(request.url.path):
        return _render(request, "MissingParameter", sentence, 400)
    return await _stacked_error(request, ParameterInvalid(sentence))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    absent = "NotAuthorizedOrNotFound" if is_control(request.url.path) else "NotFound"
    codes = {404: absent, 405: "MethodNotAllowed"}
    said = not_served(request.method, request.scope["path"], error.status_code)
    message = said or str(error.detail)
    code = codes.get(error.status_code, "Error")
    return _render(request, code, message, error.status_code, error.headers)


async def _internal_error(request: Request, error: Exception) -> JSONResponse:
    return _render(request, INTERNAL_CODE, INTERNAL, 500)


def _render(
    request: Request,
    code: str,
    message: str,
    status: int,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    plain = is_plain(request.url.path)
    body = plain_body(code, message) if plain else openai_body(code, message, status)
    return JSONResponse(body, status_code=status, headers=headers)
