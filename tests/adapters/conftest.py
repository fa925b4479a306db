"""Makes the demo adapters' scripts importable to their tests.

Owns one entry of the module path; must not know what the scripts do.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The scripts are run as `python adapters/train.py`, so their folder is their module path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "adapters"))
