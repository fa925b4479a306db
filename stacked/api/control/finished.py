"""Work that is over when it is answered: what clients that poll its work request are shown.

It must not know how the work was done.
"""

from __future__ import annotations

from stacked.api.control.answers import uri
from stacked.registry import Registry
from stacked.registry.records import Affected, Record

# Terraform's provider looks for a part of the first: `model-group`, the others without hyphens.
GROUP = ("data-science-model-group", "modelGroups")
HISTORY = ("data-science-modelgroupversionhistory", "modelGroupVersionHistory")
VERSION_SET = ("data-science-modelversionset", "modelVersionSets")


def finished(
    registry: Registry, operation: str, action: str, what: tuple[str, str], record: Record
) -> dict[str, str]:
    """Write a work request that has succeeded, and return the header that names it.

    `what` is the kind of thing and its collection, as above.
    """
    entity, collection = what
    affected = Affected(action, entity, record.id, uri(collection, record))
    work = registry.open_work_request(operation, [affected], compartment_id=record.compartment_id)
    registry.advance(work.id, 0.0)
    registry.succeed(work.id, f"{record.display_name or record.id}: {action.lower()}")
    return {"opc-work-request-id": work.id}
