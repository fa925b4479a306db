"""The kinds of values that a file has, and the base of its models."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from stacked.core import check_key, check_model_id
from stacked.errors import StackedError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION = re.compile(r"(\d{1,6})\s*([smhd])")


def _as_value_error(check: Any) -> Any:
    """Raises our own errors as ValueError, so that pydantic adds the key path."""

    def checked(text: str) -> str:
        try:
            return str(check(text))
        except StackedError as error:
            raise ValueError(str(error)) from error

    return checked


def _duration(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("expected a number and a unit: 90s, 15m, 12h or 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


Key = Annotated[str, AfterValidator(_as_value_error(check_key))]
Duration = Annotated[timedelta, BeforeValidator(_duration)]
Ocid = Annotated[str, AfterValidator(_as_value_error(check_model_id))]


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
