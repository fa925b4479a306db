"""How many servers serve a deployment, and who says how many there are to be.

Ray Serve starts and stops them as the scaling policy in the deployment's record has it, or else its
file. Where nobody starts them, a policy shows how many there are, and another one is refused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from stacked import metrics
from stacked.config import RayConfig
from stacked.errors import NotAllowed, ParameterInvalid, StackedError

if TYPE_CHECKING:
    from stacked.deployment.activation import Slot
    from stacked.deployment.ledger import Ledger

Policy = Mapping[str, Any]
"""A `scalingPolicy`, as clients of OCI send it."""

FIXED, AUTOSCALING = "FIXED_SIZE", "AUTOSCALING"

# Under Ray metrics are read every half a second, and this is a query of the fleet's database.
_FRESH_SECONDS = 5.0


class Bounds(NamedTuple):
    """How many servers at least and at most; equal: that number."""

    least: int
    most: int

    @classmethod
    def of(cls, policy: Policy) -> Bounds:
        """Of a valid policy; one without a number is of one server."""
        if policy["policyType"] == FIXED:
            count = policy.get("instanceCount") or 1
            return cls(count, count)
        (only,) = policy["autoScalingPolicies"]
        return cls(only["minimumInstanceCount"], only["maximumInstanceCount"])

    @property
    def policy(self) -> Policy:
        if self.least == self.most:
            return {"policyType": FIXED, "instanceCount": self.most}
        only = {
            "autoScalingPolicyType": "THRESHOLD",
            "minimumInstanceCount": self.least,
            "maximumInstanceCount": self.most,
            "initialInstanceCount": self.least,
            "rules": [],
        }
        return {"policyType": AUTOSCALING, "isEnabled": True, "autoScalingPolicies": [only]}


@dataclass(frozen=True, slots=True)
class Instances:
    """Of one deployment, now. `ray`: what starts and stops them, if something does."""

    running: int = 1
    fleet: bool = False
    ray: RayConfig | None = None

    def shown(self, stored: Policy | None) -> Policy | None:
        """The policy to show where the record has this one."""
        if self.ray is not None:
            return stored or Bounds(*self.ray.bounds).policy
        here = Bounds(self.running, self.running)
        if stored is None and not self.fleet:
            return None
        return stored if stored is not None and Bounds.of(stored) == here else here.policy

    def check(self, policy: Policy) -> None:
        """Raises ParameterInvalid or NotAllowed for a policy that is not followed here."""
        wanted = Bounds.of(policy)
        if self.ray is not None:
            if wanted.most > self.ray.most:
                raise ParameterInvalid(
                    f"scalingPolicy: {wanted.most} instances; this fleet may have {self.ray.most} "
                    "(ray.most in its file)"
                )
        elif policy["policyType"] != FIXED:
            kind = policy["policyType"]
            raise ParameterInvalid(f"scalingPolicy: policyType {kind} is not served; {FIXED} is")
        elif self.fleet and wanted.most != self.running:
            raise NotAllowed(
                f"scalingPolicy: instanceCount is {wanted.most}, and {self.running} servers run; "
                "start or stop servers of this fleet where they were started, nothing here does"
            )
        elif not self.fleet and wanted.most != 1:
            raise ParameterInvalid(
                f"instanceCount is {wanted.most}; this server is one machine, so it is 1"
            )


ALONE = Instances()


class Wanted:
    """What the record of the served deployment says, in the metrics, of which Ray Serve learns."""

    def __init__(self, ledger: Ledger, slot: Slot) -> None:
        self._ledger, self._slot = ledger, slot
        self._looked = float("-inf")

    def is_old(self) -> bool:
        """Whether it is to be read again; the one who hears so does it."""
        now = time.monotonic()
        old = now > self._looked + _FRESH_SECONDS
        if old:
            self._looked = now
        return old

    async def read(self) -> None:
        """Have the metrics show it. While the records cannot be read, they show what was there."""
        if (served := self._slot.occupant) is None:
            return
        try:
            get = self._ledger.registry.deployments.get
            record = await self._ledger.do(get, served.deployment_id)
        except StackedError:
            return
        policy = (record.configuration.get("infrastructure") or {}).get("scalingPolicy")
        least, most = Bounds.of(policy) if policy else (0, 0)
        metrics.fleet_wanted(least, most, record.time_updated.timestamp())
