"""What survives the process: models, groups, histories, deployments and work requests in SQLite.

It must not know the engine, HTTP or wire formats.
"""

from stacked.registry.ids import DEPLOYMENT, GROUP, HISTORY, WORK_REQUEST, new_id
from stacked.registry.lock import DataDirLock, lock_data_dir
from stacked.registry.records import (
    Affected,
    DeployedMember,
    Deployment,
    GroupMember,
    GroupModel,
    Model,
    ModelGroup,
    Page,
    Query,
    Recovered,
    VersionHistory,
    WorkError,
    WorkLog,
    WorkRequest,
)
from stacked.registry.registry import Registry
from stacked.registry.states import (
    DeploymentState,
    GroupState,
    HistoryState,
    MemberState,
    ModelState,
    WorkStatus,
)

__all__ = [
    "DEPLOYMENT",
    "GROUP",
    "HISTORY",
    "WORK_REQUEST",
    "Affected",
    "DataDirLock",
    "DeployedMember",
    "Deployment",
    "DeploymentState",
    "GroupMember",
    "GroupModel",
    "GroupState",
    "HistoryState",
    "MemberState",
    "Model",
    "ModelGroup",
    "ModelState",
    "Page",
    "Query",
    "Recovered",
    "Registry",
    "VersionHistory",
    "WorkError",
    "WorkLog",
    "WorkRequest",
    "WorkStatus",
    "lock_data_dir",
    "new_id",
]
