"""Lists over HTTP: a query to what the registry understands, a page to a bare array.

It must not know what is listed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse

from stacked.errors import ParameterInvalid
from stacked.registry.records import Page, Query

R = TypeVar("R")

SORTS = {
    "timeCreated": "time_created",
    "displayName": "display_name",
    "lifecycleState": "state",
}
WORK_SORTS = {"timeAccepted": "time_accepted", "operationType": "operation", "status": "status"}
# How a filter's name on the wire is the registry's; of a choice, its values. `lifecycleState` is
# `state` there, and another choice is called as it is here.
Names = Mapping[str, str | type[enum.Enum]]
FILTERS: Names = {
    "id": "id",
    "displayName": "display_name",
    "createdBy": "created_by",
    "projectId": "project_id",
}


def _query(request: Request, sorts: Mapping[str, str]) -> Query:
    given = request.query_params
    limit = given.get("limit", "100")
    if not limit.isascii() or not limit.isdigit() or len(limit) > 9:
        raise ParameterInvalid(f"limit must be a number, not {limit[:40]!r}")
    sort = _one_of(given.get("sortBy"), "sortBy", sorts) if sorts else None
    order = _one_of(given.get("sortOrder"), "sortOrder", {"ASC": "", "DESC": "falls"})
    falls = None if order is None else bool(order)
    return Query(sort=sort, descending=falls, limit=int(limit), page=given.get("page"))


def _one_of(value: str | None, name: str, known: Mapping[str, str]) -> str | None:
    if value is not None and value not in known:
        raise ParameterInvalid(f"{name} must be one of {', '.join(known)}, not {value[:40]!r}")
    return None if value is None else known[value]


def _filters(request: Request, names: Names) -> dict[str, str | enum.Enum]:
    """What the query filters by, as the registry calls it.

    Compartments are taken and not looked at: one server is one of them.
    """
    found: dict[str, str | enum.Enum] = {}
    for name, field in names.items():
        value = request.query_params.get(name)
        if value is None:
            continue
        if isinstance(field, str):
            found[field] = value
            continue
        known = {str(state.value): str(state.value) for state in field}
        chosen = _one_of(value, name, known)
        found["state" if name == "lifecycleState" else name] = field(chosen)
    return found


def listed(
    request: Request,
    read: Callable[..., Page[R]],
    sorts: Mapping[str, str],
    names: Names,
    render: Callable[[R], dict[str, Any]],
) -> JSONResponse:
    """A bare array; the header of the next page is there only when there is one."""
    page = read(_query(request, sorts), **_filters(request, names))
    headers = {"opc-next-page": page.next} if page.next else {}
    return JSONResponse([render(item) for item in page.items], headers=headers)
