"""What every Python program here shares: what it is asked, and how it tells what came of it.

Runs in each client's own environment, so it must import nothing but the standard library.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

ASKED: dict[str, Any] = json.load(sys.stdin)
"""`url` of the server, `api_key`, the questions by key, and what a single program needs too."""

URL: str = ASKED["url"]
BASE_URL = f"{URL}/v1"
API_KEY: str = ASKED["api_key"]

UNIT_TOOL = {
    "type": "function",
    "function": {"name": "set_unit", "parameters": ASKED["unit_parameters"]},
}


def question(key: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": ASKED[key]}]


def raised(call: Callable[[], object]) -> str:
    """The class of what `call` raises; what it returns where it raises nothing."""
    try:
        return f"nothing, but {call()!r}"
    except Exception as error:  # noqa: BLE001 - which one is what is asked
        return type(error).__name__


def tell(**told: Any) -> None:
    """The program's result, as the last line that it prints."""
    print(json.dumps(told))
