"""The control plane's operations, by the names that OCI's SDK gives them.

Filters and bodies are those that the routes read. It must not know how a document is put together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stacked.api import asked
from stacked.api.control import deployments
from stacked.api.lists import SORTS, Names
from stacked.api.openapi import shapes
from stacked.api.openapi.parts import (
    IF_MATCH,
    RETRY_TOKEN,
    Answer,
    Json,
    Operation,
    filters,
)
from stacked.api.targets import PREFIX

_READS = (401, 403, 404, 500, 503)
_LISTS = (400, 401, 403, 404, 500, 503)
_WRITES = (400, 401, 403, 404, 409, 412, 413, 500, 503)
_WORK = "opc-work-request-id"
_STREAM = "application/octet-stream"


def operations() -> Iterator[Operation]:
    yield from _deployments()


def _deployments() -> Iterator[Operation]:
    tag, all_, shape = "Deployments", "/modelDeployments", shapes.ModelDeployment
    one, sorts = f"{all_}/{{id}}", deployments.LIST_SORTS
    made = Answer(200, "It is starting; follow the work request", shape, ("etag", _WORK))
    yield _make("create_model_deployment", all_, tag, made, asked.CreateDeployment, (404,))
    summary = shapes.ModelDeploymentSummary
    yield _list("list_model_deployments", all_, tag, summary, deployments.LIST_FILTERS, sorts)
    yield _get("get_model_deployment", one, tag, shape)
    yield _write(
        "update_model_deployment",
        "PUT",
        one,
        tag,
        Answer(202, "Under way; follow the work request", None, (_WORK,)),
        body=asked.UpdateDeployment,
    )
    yield _delete("delete_model_deployment", one, tag, 202, (_WORK,))
    yield from _switch("model_deployment", one, tag, 202, None, (_WORK,))
    yield _move("change_model_deployment_compartment", one, tag)
    state, names = shapes.ModelDeploymentModelStateSummary, deployments.STATE_FILTERS
    id = "list_model_deployment_model_states"
    yield _list(id, f"{one}/models/modelState", tag, state, names, sorts)
    yield _list(f"{id}_too", f"{one}/modelStates", tag, state, names, sorts)


# -- kinds of operations --------------------------------------------------------------------


def _operation(
    id: str,
    method: str,
    path: str,
    tag: str,
    answer: Answer | Sequence[Answer],
    errors: Sequence[int],
    **more: Any,
) -> Operation:
    answers = (answer,) if isinstance(answer, Answer) else answer
    told = id.replace("_", " ").capitalize()
    return Operation(id, method, PREFIX + path, told, tag, answers, sorted(set(errors)), **more)


def _make(
    id: str,
    path: str,
    tag: str,
    answer: Answer,
    body: Any,
    errors: Sequence[int],
    more: Sequence[Json] = (),
) -> Operation:
    # A token that is no token, or was used for something else, and the rest of a creation.
    wrong = {400, 401, 403, 409, 413, 500, 503, *errors} | ({412} if more else set())
    given = (RETRY_TOKEN, *more)
    return _operation(id, "POST", path, tag, answer, sorted(wrong), parameters=given, body=body)


def _create(
    id: str,
    path: str,
    tag: str,
    body: Any,
    shape: Any,
    errors: Sequence[int],
    more: Sequence[Json] = (),
) -> Operation:
    answer = Answer(200, "What was made", shape, ("etag",))
    return _make(id, path, tag, answer, body, (404, *errors), more)


def _list(
    id: str,
    path: str,
    tag: str,
    shape: Any,
    names: Names,
    sorts: Mapping[str, str] = SORTS,
) -> Operation:
    answer = Answer(200, "A page of them, in an array", list[shape], ("opc-next-page",))
    return _operation(id, "GET", path, tag, answer, _LISTS, parameters=filters(names, sorts))


def _get(id: str, path: str, tag: str, shape: Any) -> Operation:
    return _operation(id, "GET", path, tag, Answer(200, "It", shape, ("etag",)), _READS)


def _write(id: str, method: str, path: str, tag: str, answer: Answer, **more: Any) -> Operation:
    given = (IF_MATCH, *more.pop("parameters", ()))
    return _operation(id, method, path, tag, answer, _WRITES, parameters=given, **more)


def _get_and_put(name: str, path: str, tag: str, shape: Any, body: Any) -> Iterator[Operation]:
    yield _get(f"get_{name}", path, tag, shape)
    answer = Answer(200, "As it is now", shape, ("etag",))
    yield _write(f"update_{name}", "PUT", path, tag, answer, body=body)


def _delete(
    id: str, path: str, tag: str, status: int, headers: Sequence[str], *more: Json
) -> Operation:
    answer = Answer(status, "It is gone or going", None, headers)
    return _write(id, "DELETE", path, tag, answer, parameters=more)


def _switch(
    name: str, path: str, tag: str, status: int, shape: Any, headers: Sequence[str]
) -> Iterator[Operation]:
    for verb in ("activate", "deactivate"):
        answer = Answer(status, "As it is now" if shape else "Under way", shape, headers)
        # A POST, so that a token that is sent along is kept.
        yield _write(
            f"{verb}_{name}",
            "POST",
            f"{path}/actions/{verb}",
            tag,
            answer,
            parameters=(RETRY_TOKEN,),
        )


def _move(id: str, path: str, tag: str, *headers: str) -> Operation:
    answer = Answer(204, "It is in that compartment now", None, ("etag", *headers))
    return _write(
        id,
        "POST",
        f"{path}/actions/changeCompartment",
        tag,
        answer,
        body=asked.ChangeCompartment,
        parameters=(RETRY_TOKEN,),
    )
