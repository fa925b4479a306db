"""Every operation of OCI's SDK on what this server has, in the order of a life."""

from tests.contract.operations import models  # noqa: I001  (the deployment comes last)
from tests.contract.operations import version_sets
from tests.contract.operations import groups
from tests.contract.operations import deployments
from tests.contract.operations.table import OPERATIONS

__all__ = ["OPERATIONS", "deployments", "groups", "models", "version_sets"]
