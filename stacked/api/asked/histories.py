"""What version histories may be asked: the bodies of their requests, to values.

Pure: it reads and refuses, and names the place. It must not know which groups there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from stacked.api.asked.common import Described, Description, Json, Tagged


class CreateHistory(Tagged):
    """`POST /modelGroupVersionHistory`."""

    display_name: Annotated[str, Field(min_length=1, max_length=255)]
    description: Description = ""
    latest_model_group_id: str | None = None


class UpdateHistory(Described):
    """`PUT /modelGroupVersionHistory/{id}`: a field that is left out stays."""

    latest_model_group_id: str | None = None

    def changes(self, tags: Mapping[str, Any]) -> Json:
        """The columns that change; `tags` are those that the history has."""
        latest = self.latest_model_group_id
        return {**self.described(tags), **({"latest_group_id": latest} if latest else {})}
