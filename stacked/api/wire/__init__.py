"""Records to the JSON of OCI's control plane: discriminators always there, lists never null.

Pure functions, one a kind of record. It must not know routes or what is live.
"""

from stacked.api.wire.common import Json, etag, head_of, moment
from stacked.api.wire.deployments import deployment, deployment_summary, member_state

__all__ = [
    "Json",
    "deployment",
    "deployment_summary",
    "etag",
    "head_of",
    "member_state",
    "moment",
]
