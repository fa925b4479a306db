"""What survives the process: models, groups, histories, deployments and work requests.

It must not know the engine, HTTP or wire formats.
"""

from stacked.registry.lock import lock_data_dir
from stacked.registry.postgresql import Shared
from stacked.registry.records import (
    DEPLOYMENT,
    GROUP,
    HISTORY,
    MODEL,
    VERSION_SET,
    WORK_REQUEST,
    Affected,
    Artifact,
    Content,
    DeployedMember,
    Deployment,
    GroupMember,
    GroupRecord,
    Model,
    ModelVersionSet,
    Page,
    Query,
    Recovered,
    VersionHistory,
    WorkRequest,
    new_id,
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
