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

__all__ = [
    "ChangeCompartment",
    "CreateDeployment",
    "Settings",
    "UpdateDeployment",
    "changed_parts",
    "check_live",
    "differing",
    "not_yet",
    "parts_given",
]
