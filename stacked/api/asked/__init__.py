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
from stacked.api.asked.groups import (
    CloneGroup,
    CreateGroup,
    GroupDetails,
    Modified,
    NewGroup,
    Patches,
    UpdateGroup,
    check_mutable,
    patched,
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
    "CloneGroup",
    "CreateDeployment",
    "CreateGroup",
    "CreateModel",
    "GroupDetails",
    "Modified",
    "NewGroup",
    "Patches",
    "Provenance",
    "Settings",
    "UpdateDeployment",
    "UpdateGroup",
    "UpdateModel",
    "changed_parts",
    "check_live",
    "check_mutable",
    "check_source",
    "differing",
    "model_id_given",
    "not_yet",
    "parts_given",
    "patched",
]
