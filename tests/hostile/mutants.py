"""The mutants of one healthy adapter: a pure function of a seed and a number."""

from __future__ import annotations

import copy
import random
from pathlib import Path

from tests.hostile import configs, weights
from tests.hostile.draft import Draft, pick
from tests.hostile.packing import as_directory, as_tar, as_zip


def mutant(healthy: Draft, seed: int, number: int, into: Path) -> tuple[Path, str]:
    """Write a mutant into an empty directory: its source, and what was done to it.

    Most have one fault, so that the check behind the first is reached too; some have none.
    """
    rng = random.Random(f"{seed} {number}")
    draft = Draft(list(healthy.rows), healthy.data, copy.deepcopy(healthy.config))
    draft.notes.append(weights.another(rng, draft))
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 3))):
        mutators = pick(rng, (weights.MUTATORS, configs.MUTATORS))
        draft.notes.append(pick(rng, mutators)(rng, draft))
    packed = rng.choices((as_directory, as_zip, as_tar), (6, 2, 2))[0]
    source, how = packed(rng, draft.written(), into)
    return source, "; ".join((*draft.notes, how))
