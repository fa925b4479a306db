"""The server's side of what groups try: how much of an engine, a disk and a memory it may take."""

from __future__ import annotations

from stacked.config.evaluations import GatesConfig
from stacked.config.fields import Frozen


class ExperimentsConfig(Frozen):
    gates: GatesConfig = GatesConfig()
