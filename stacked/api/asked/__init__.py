"""What the control plane may be asked: the bodies of its requests, to values.

Pure: it reads and refuses, and names the place. It must not know routes, records or what is live.
"""

from stacked.api.asked.common import ChangeCompartment, not_yet
from stacked.api.asked.deployments import (
    CreateDeployment,
    UpdateDeployment,
    changed_parts,
    check_live,
    parts_given,
)

__all__ = [
    "ChangeCompartment",
    "CreateDeployment",
    "UpdateDeployment",
    "changed_parts",
    "check_live",
    "not_yet",
    "parts_given",
]
