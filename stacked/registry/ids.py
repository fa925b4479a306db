"""New identifiers and the current time, as in records."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

MODEL = "datasciencemodel"
GROUP = "datasciencemodelgroup"
HISTORY = "datasciencemodelgroupversionhistory"
VERSION_SET = "datasciencemodelversionset"
DEPLOYMENT = "datasciencemodeldeployment"
WORK_REQUEST = "datascienceworkrequest"

_KINDS = (MODEL, GROUP, HISTORY, VERSION_SET, DEPLOYMENT, WORK_REQUEST)


def new_id(kind: str) -> str:
    """A fresh OCID: `ocid1.<kind>.oc1..` and 40 random lower-case hex digits.

    A model from a source has no random id: its id is given, or follows from its content.
    """
    if kind not in _KINDS:
        raise ValueError(f"no ids of kind {kind!r} are made; one of {', '.join(_KINDS)}")
    return f"ocid1.{kind}.oc1..{uuid.uuid4().hex}{uuid.uuid4().hex[:8]}"


def now() -> datetime:
    """The time, in UTC, to the microsecond."""
    return datetime.now(UTC)
