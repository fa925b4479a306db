"""The table of operations: what calls each, by the method of the SDK's client.

It must not know any one operation.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.contract.world import World

Check = Callable[[World], None]
OPERATIONS: dict[str, Check] = {}


def operation(check: Check) -> Check:
    """Put a function into the table under its own name, which is the operation's."""
    OPERATIONS[check.__name__] = check
    return check
