"""Removing content while it is added and used: what is pinned or was used since stays."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

from stacked.core import Digest
from stacked.store import AdapterStore, BaseModules
from stacked.store.shelf import Stored
from tests.store.small import write_adapter


def listed(store: AdapterStore) -> list[Stored]:
    return sorted(store.contents(), key=lambda each: each.digest)


def add(store: AdapterStore, base: BaseModules, place: Path, seed: int = 0) -> Digest:
    source = place / f"source-{seed}"
    if not source.exists():
        write_adapter(source, seed=seed)
    return store.add(str(source), base=base).digest


def test_what_is_listed_has_its_size_and_is_removed_whole(
    store: AdapterStore, base: BaseModules, tmp_path: Path
) -> None:
    digest = add(store, base, tmp_path)
    (one,) = listed(store)
    files = list(store.get(digest).path.iterdir())
    assert (one.kind, one.digest) == ("adapter", digest)
    assert one.bytes == sum(path.stat().st_size for path in files)
    assert store.remove(one)
    assert listed(store) == []
    assert not store.remove(one), "it is gone"


def test_what_was_used_since_it_was_listed_stays(
    store: AdapterStore, base: BaseModules, tmp_path: Path
) -> None:
    digest = add(store, base, tmp_path)
    for use in (
        lambda: add(store, base, tmp_path),
        lambda: store.claim(digest, base=base),
        lambda: store.holds(digest),
    ):
        (before,) = listed(store)
        use()
        assert not store.remove(before)
        assert store.holds(digest)


def test_what_a_running_operation_uses_stays_until_it_has_ended(
    store: AdapterStore, base: BaseModules, tmp_path: Path
) -> None:
    with store.pinned():
        digest = add(store, base, tmp_path)
        assert store.pins() == {digest}
        assert not store.remove(*listed(store))
        other = AdapterStore(store.root)
        assert not other.remove(*listed(store)), "another process's store sees it too"
    assert store.pins() == frozenset()
    assert store.remove(*listed(store))


def test_a_thread_of_an_operation_pins_for_it(
    store: AdapterStore, base: BaseModules, tmp_path: Path
) -> None:
    async def main() -> bool:
        with store.pinned():
            await asyncio.to_thread(add, store, base, tmp_path)
            return await asyncio.to_thread(lambda: store.remove(*listed(store)))

    assert not asyncio.run(main())


def test_an_operation_may_be_ended_by_another_task(
    store: AdapterStore, base: BaseModules, tmp_path: Path
) -> None:
    async def main() -> None:
        held = contextlib.ExitStack()

        async def begin() -> None:
            held.enter_context(store.pinned())
            add(store, base, tmp_path)

        await asyncio.create_task(begin())
        assert not store.remove(*listed(store))
        held.close()
        assert store.remove(*listed(store))

    asyncio.run(main())


KILLED = """
import os, signal, sys
from pathlib import Path
from stacked.store import AdapterStore, BaseModules
store = AdapterStore(Path(sys.argv[1]))
with store.pinned():
    store.add(sys.argv[2], base=BaseModules.read(Path(sys.argv[3])))
    print("pinned", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_pins_of_a_process_count_as_long_as_it_lives(
    store: AdapterStore, base: BaseModules, tmp_path: Path
) -> None:
    source = write_adapter(tmp_path / "source")
    command = [sys.executable, "-c", KILLED, str(store.root), str(source), str(base.directory)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "pinned\n"
        assert not store.remove(*listed(store))
        process.communicate("die\n")
    assert store.pins() == frozenset()
    assert list((store.root / "pins").iterdir()) == []
    assert store.remove(*listed(store))
