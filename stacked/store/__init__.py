"""The store: sources, checks, content-addressed copies, uploads. It knows no engine, no group."""

from stacked.store.artifacts import ArtifactFiles, Incoming, pack
from stacked.store.base import BaseModules
from stacked.store.base_store import BaseStore
from stacked.store.checks import Report
from stacked.store.limits import Limits
from stacked.store.models import ModelStore, is_model
from stacked.store.peft_config import RANK_LADDER, rung
from stacked.store.shared import SharedContents
from stacked.store.sources import is_remote, parse_hub
from stacked.store.store import AdapterStore
from stacked.store.uploads import Kind, Outgoing, kind_of, outgoing
