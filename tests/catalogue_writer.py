"""A process that uploads to a catalogue until it is killed: `python -m … DIRECTORY ROUNDS`.

It prints an id for every upload that is done, and nothing for one that is not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stacked.catalogue import Catalogue
from stacked.registry import MODEL, Model, Registry, new_id
from stacked.store import AdapterStore


def main(place: Path) -> None:
    """Upload the zips of `place` to new models, and over and over to the first one."""
    sent = [path.read_bytes() for path in sorted(place.glob("*.zip"))]
    with Registry(place / "registry.sqlite") as registry:
        catalogue = Catalogue(registry, AdapterStore(place / "store"), place / "artifacts")
        print("begun", flush=True)
        again = registry.models.put(Model(id=new_id(MODEL))).id
        for at in range(10_000):
            data = sent[at % len(sent)]
            id = again if at % 2 else registry.models.put(Model(id=new_id(MODEL))).id
            with catalogue.files.receive(len(data)) as incoming:
                incoming.write(data[:100])
                incoming.write(data[100:])
                incoming.finish()
                catalogue.fill(id, incoming, "a.zip")
            if at % 3 == 0 and not at % 2:
                catalogue.delete(id)
            else:
                print(id, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
