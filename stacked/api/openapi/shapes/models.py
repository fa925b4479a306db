"""Models, their metadata and provenance, as they are answered.

It must not know routes.
"""

from __future__ import annotations

from stacked.api.openapi.shapes.common import Category, Head
from stacked.registry.states import ModelState


class Outline(Head):
    lifecycleState: ModelState
    lifecycleDetails: str
    category: Category
    isModelByReference: bool
