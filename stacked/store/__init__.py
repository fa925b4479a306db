"""The adapter store: sources, checks and content-addressed copies. It knows no engine, no group."""

from stacked.store.base import BaseModules
from stacked.store.checks import Report
from stacked.store.limits import Limits
from stacked.store.peft_config import RANK_LADDER, rung
from stacked.store.sources import is_remote
from stacked.store.store import AdapterStore

__all__ = ["RANK_LADDER", "AdapterStore", "BaseModules", "Limits", "Report", "is_remote", "rung"]
