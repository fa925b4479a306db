"""Records to the JSON of OCI's control plane: discriminators always there, lists never null.

Pure functions, one a kind of record. It must not know routes or what is live.
"""

from stacked.api.wire.common import Json, etag, head_of, moment
from stacked.api.wire.deployments import deployment, deployment_summary, member_state
from stacked.api.wire.models import (
    is_by_reference,
    metadata_part,
    model,
    model_summary,
    provenance,
    shown_source,
)

__all__ = [
    "Json",
    "deployment",
    "deployment_summary",
    "etag",
    "head_of",
    "is_by_reference",
    "member_state",
    "metadata_part",
    "model",
    "model_summary",
    "moment",
    "provenance",
    "shown_source",
]
