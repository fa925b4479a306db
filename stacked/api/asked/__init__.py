"""What the control plane may be asked: the bodies of its requests, to values.

Pure: it reads and refuses, and names the place. It must not know routes, records or what is live.
"""

from stacked.api.asked.common import ChangeCompartment, differing, not_yet
from stacked.api.asked.deployments import (
    CreateDeployment,
    Settings,
    UpdateDeployment,
    changed_parts,
    check_live,
    parts_given,
)
from stacked.api.asked.models import (
    CreateModel,
    Provenance,
    UpdateModel,
    check_source,
    model_id_given,
)

__all__ = [
    "ChangeCompartment",
    "CreateDeployment",
    "CreateModel",
    "Provenance",
    "Settings",
    "UpdateDeployment",
    "UpdateModel",
    "changed_parts",
    "check_live",
    "check_source",
    "differing",
    "model_id_given",
    "not_yet",
    "parts_given",
]
