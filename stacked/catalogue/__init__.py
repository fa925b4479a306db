"""The catalogue: models with their content, groups of them, and the files they came as.

Between the registry's records and the stores on disk. It must not know the engine, HTTP or what is
served.
"""

from stacked.catalogue.bases import FINE_TUNE_SOURCE
from stacked.catalogue.catalogue import Catalogue

__all__ = ["FINE_TUNE_SOURCE", "Catalogue"]
