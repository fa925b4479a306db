"""The store keeps each content once, whole or not at all, and notices damage."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stacked.core import Adapter, Digest
from stacked.errors import (
    AdapterAbsent,
    AdapterError,
    ModuleUnknown,
    RankRefused,
    SourceRefused,
    StackedError,
    StoreDamaged,
    StoreUnusable,
)
from stacked.store import AdapterStore, BaseModules, checks
from stacked.store import store as module
from stacked.store.disk import SPARE, locked
from stacked.store.text import size
from tests.store.small import lora_config, write_adapter, write_base, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def entries(store: AdapterStore) -> list[str]:
    return sorted(os.listdir(store.root / "adapters"))


def drop(store: AdapterStore, digest: Digest) -> bool:
    """Remove an adapter that nobody uses; whether it was there."""
    return any(store.remove(each) for each in store.contents() if each.digest == digest)


def staging(store: AdapterStore) -> list[str]:
    return sorted(os.listdir(store.root / "staging"))


def test_an_added_adapter_stands_under_its_digest(
    store: AdapterStore, adapter: Path, base: BaseModules
) -> None:
    added = store.add(str(adapter), base=base, max_rank=8)
    assert added.path == store.root / "adapters" / added.digest.removeprefix("sha256:")
    assert added.path.is_absolute()
    assert (added.rank, added.base) == (4, "small")
    assert added.target_modules == ("down_proj", "q_proj", "v_proj")
    assert added.bytes == (adapter / WEIGHTS).stat().st_size
    assert sorted(os.listdir(added.path)) == [CONFIG, WEIGHTS]
    assert (added.path / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    assert json.loads((added.path / CONFIG).read_text()) == lora_config()
    assert staging(store) == []
    store.verify(added.digest)


def test_what_is_stored_is_read_only(store: AdapterStore, adapter: Path, base: BaseModules) -> None:
    path = store.add(str(adapter), base=base).path
    assert stat.S_IMODE(path.stat().st_mode) == 0o555
    for name in (CONFIG, WEIGHTS):
        assert stat.S_IMODE((path / name).stat().st_mode) == 0o444


def test_the_same_content_is_kept_once_whatever_its_source_and_spelling(
    store: AdapterStore, adapter: Path, base: BaseModules, tmp_path: Path
) -> None:
    first = store.add(str(adapter), base=base)
    other = write_adapter(tmp_path / "other", base_model_name_or_path="elsewhere")
    (other / CONFIG).write_text(json.dumps(json.loads((other / CONFIG).read_text()), indent=9))
    archive = shutil.make_archive(str(tmp_path / "packed"), "gztar", other)
    assert store.add(str(other), base=base).digest == first.digest
    assert store.add(archive, base=base).path == first.path
    assert len(entries(store)) == 1


def test_other_content_is_another_adapter(
    store: AdapterStore, adapter: Path, base: BaseModules, tmp_path: Path
) -> None:
    one = store.add(str(adapter), base=base)
    two = store.add(str(write_adapter(tmp_path / "two", seed=1)), base=base)
    three = store.add(str(write_adapter(tmp_path / "three", lora_alpha=9)), base=base)
    assert len({one.digest, two.digest, three.digest}) == 3
    assert {adapter.digest for adapter in store.list()} == {one.digest, two.digest, three.digest}


def test_a_refused_adapter_leaves_nothing(
    store: AdapterStore, adapter: Path, base: BaseModules, tmp_path: Path
) -> None:
    with pytest.raises(RankRefused):
        store.add(str(adapter), base=base, max_rank=1)
    with pytest.raises(SourceRefused):
        store.add(str(adapter), base=base, allowed_roots=[tmp_path / "elsewhere"])
    assert (entries(store), staging(store)) == ([], [])


def test_allowed_roots_may_be_links(
    store: AdapterStore, adapter: Path, base: BaseModules, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    source = str(tmp_path / "link" / "adapter")
    assert store.add(source, base=base, allowed_roots=[tmp_path / "link"]).rank == 4


def test_inspect_says_the_same_and_keeps_nothing(
    store: AdapterStore, adapter: Path, base: BaseModules
) -> None:
    report = store.inspect(str(adapter), base=base, max_rank=8)
    assert (entries(store), staging(store)) == ([], [])
    added = store.add(str(adapter), base=base)
    assert report.adapter(added.path) == added
    with pytest.raises(RankRefused):
        store.inspect(str(adapter), base=base, max_rank=1)


def test_get_and_list_survive_a_restart(
    store: AdapterStore, adapter: Path, base: BaseModules
) -> None:
    added = store.add(str(adapter), base=base)
    again = AdapterStore(store.root)
    assert again.get(added.digest) == added
    assert again.list() == [added]


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "sha256:../..", "", "0" * 63])
def test_what_is_not_there_is_absent(store: AdapterStore, digest: str) -> None:
    for method in (store.get, store.verify):
        with pytest.raises(AdapterAbsent) as caught:
            method(Digest(digest))
        assert caught.value.code == "AdapterAbsent"


def test_removed_is_gone_and_can_come_back(
    store: AdapterStore, adapter: Path, base: BaseModules
) -> None:
    added = store.add(str(adapter), base=base)
    assert drop(store, added.digest)
    assert (entries(store), staging(store), store.list()) == ([], [], [])
    with pytest.raises(AdapterAbsent):
        store.get(added.digest)
    assert store.add(str(adapter), base=base) == added


# Damage


def damage(path: Path, content: bytes | None) -> None:
    path.parent.chmod(0o755)
    if content is None:
        path.unlink()
    else:
        path.chmod(0o644)
        path.write_bytes(content)


def flipped(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    return bytes(content)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("kind", ["flipped", "cut", "gone"])
def test_damage_is_noticed_and_adding_again_repairs_it(
    name: str, kind: str, store: AdapterStore, adapter: Path, base: BaseModules
) -> None:
    added = store.add(str(adapter), base=base)
    path = added.path / name
    damage(path, {"flipped": flipped(path), "cut": path.read_bytes()[:9], "gone": None}[kind])
    if kind == "flipped" and name == CONFIG:  # the final newline: flip a value instead
        write_json(path, lora_config(lora_alpha=9))
    with pytest.raises(StoreDamaged) as caught:
        AdapterStore(store.root).verify(added.digest)
    assert added.digest in str(caught.value)
    assert caught.value.code == "StoreDamaged"
    assert store.add(str(adapter), base=base) == added
    store.verify(added.digest)
    assert len(entries(store)) == 1
    assert staging(store) == []


def test_a_damaged_adapter_is_not_listed_and_can_be_removed(
    store: AdapterStore, adapter: Path, base: BaseModules
) -> None:
    added = store.add(str(adapter), base=base)
    damage(added.path / WEIGHTS, b"")
    fresh = AdapterStore(store.root)
    with pytest.raises(StoreDamaged):
        fresh.get(added.digest)
    assert fresh.list() == []
    assert drop(fresh, added.digest)
    assert entries(store) == []


def test_what_would_not_fit_is_refused_before_it_is_written(
    store: AdapterStore, adapter: Path, base: BaseModules, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (adapter / WEIGHTS).stat().st_size
    free = SimpleNamespace(free=SPARE + weights - 1)
    packed = shutil.make_archive(str(adapter), "zip", adapter)
    with monkeypatch.context() as full:
        full.setattr("stacked.store.disk.shutil.disk_usage", lambda _: free)
        for source in (str(adapter), packed):
            with pytest.raises(
                StoreUnusable, match=rf"no room for '{WEIGHTS}' \(.*are free"
            ) as told:
                store.add(source, base=base)
            assert size(weights) in str(told.value)
    assert (entries(store), staging(store)) == ([], [])


# What a crash leaves


def test_leftovers_of_a_crash_are_ignored_then_cleared(
    store: AdapterStore, adapter: Path, base: BaseModules
) -> None:
    for name in ("orphan", "locked-once"):
        (store.root / "staging" / name / "adapter").mkdir(parents=True)
        (store.root / "staging" / name / "adapter" / WEIGHTS).write_bytes(b"half")
        (store.root / "staging" / name / "adapter").chmod(0o555)
    (store.root / "staging" / "locked-once.lock").touch()
    (store.root / "staging" / "lonely.lock").touch()
    again = AdapterStore(store.root)
    assert again.list() == []
    added = again.add(str(adapter), base=base)
    again.tidy()
    assert staging(store) == []
    assert again.list() == [added]


def test_the_workplace_of_somebody_at_work_stays(store: AdapterStore) -> None:
    place = store.root / "staging" / "busy"
    place.mkdir()
    with locked(store.root / "staging" / "busy.lock"):
        store.tidy()
        assert place.is_dir()
    store.tidy()
    assert staging(store) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from stacked.store import AdapterStore, BaseModules, shelf, store as module
step, root, source, base = sys.argv[1:]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if step == "copied":
    module.check_directory = die
elif step == "checked":
    AdapterStore._publish = die
elif step == "flushed":
    shelf.Shelf.changing = die
elif step == "renamed":
    flush = shelf.flush
    shelf.flush = lambda path: die() if path.name == "adapters" else flush(path)
AdapterStore(Path(root)).add(source, base=BaseModules.read(Path(base)))
"""


@pytest.mark.parametrize("step", ["copied", "checked", "flushed", "renamed"])
def test_killed_at_any_step_it_leaves_the_whole_adapter_or_nothing(
    step: str, store: AdapterStore, adapter: Path, base: BaseModules, tmp_path: Path
) -> None:
    directory = write_base(tmp_path / "base")
    script = [sys.executable, "-c", KILLED, step, str(store.root), str(adapter), str(directory)]
    assert subprocess.run(script, check=False).returncode == -9
    assert len(store.list()) == (1 if step == "renamed" else 0)
    for left in store.list():
        store.verify(left.digest)
    added = store.add(str(adapter), base=base)
    store.verify(added.digest)
    store.tidy()
    assert (len(entries(store)), staging(store)) == (1, [])


# Many at once


def test_eight_threads_adding_the_same_get_the_same(
    store: AdapterStore, adapter: Path, base: BaseModules
) -> None:
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda _: store.add(str(adapter), base=base), range(16)))
    assert len(set(added)) == 1
    assert (len(entries(store)), staging(store)) == (1, [])
    store.verify(added[0].digest)


def test_threads_adding_and_removing_end_in_a_whole_store(
    store: AdapterStore, base: BaseModules, tmp_path: Path
) -> None:
    sources = [str(write_adapter(tmp_path / str(seed), seed=seed)) for seed in range(3)]

    def churn(number: int) -> list[type[StackedError]]:
        failures: list[type[StackedError]] = []
        for step in range(6):
            try:
                added = store.add(sources[(number + step) % 3], base=base)
                if step % 2:
                    drop(store, added.digest)
                else:
                    store.list()
            except StackedError as error:
                failures.append(type(error))
        return failures

    with ThreadPoolExecutor(6) as pool:
        failures = [kind for result in pool.map(churn, range(6)) for kind in result]
    assert set(failures) <= {AdapterAbsent}  # another thread removed it first
    for left in store.list():
        store.verify(left.digest)
    assert staging(store) == []


def _add(root: Path, source: str, base: BaseModules) -> Adapter:
    return AdapterStore(root).add(source, base=base)


def test_two_processes_adding_the_same_both_succeed(
    store: AdapterStore, adapter: Path, base: BaseModules
) -> None:
    jobs = [(store.root, str(adapter), base)] * 4
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        added = pool.starmap(_add, jobs)
    assert len(set(added)) == 1
    assert (len(entries(store)), staging(store)) == (1, [])


# The rest


def test_what_is_checked_is_the_private_copy(
    store: AdapterStore, adapter: Path, base: BaseModules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source changes while it is being checked: what was checked is what is kept."""
    expected = store.inspect(str(adapter), base=base).digest
    check = module.check_directory

    def check_while_the_source_changes(directory: Path, *rest: Any, **more: Any) -> object:
        write_json(adapter / CONFIG, lora_config(use_dora=True))
        (adapter / WEIGHTS).write_bytes(b"changed")
        return check(directory, *rest, **more)

    monkeypatch.setattr(module, "check_directory", check_while_the_source_changes)
    added = store.add(str(adapter), base=base)
    assert added.digest == expected
    store.verify(added.digest)


def test_a_disk_that_cannot_be_written_is_not_the_adapters_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnusable, match="cannot be used") as caught:
        AdapterStore(tmp_path / "file" / "store")
    assert not isinstance(caught.value, AdapterError)


def test_warnings_are_logged_when_an_adapter_is_added(
    store: AdapterStore, base: BaseModules, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The logger's own level: other tests import libraries that raise the root's.
    vain = write_adapter(
        tmp_path / "vain", target_modules=["q_proj", "v_proj", "down_proj", "wrong_proj"]
    )
    with caplog.at_level("WARNING", logger="stacked"):
        for _ in range(2):  # and when it is there already
            store.add(str(vain), base=base)
            assert "wrong_proj" in caplog.text
            caplog.clear()


def test_what_is_there_already_is_neither_checked_for_values_nor_written_again(
    store: AdapterStore, adapter: Path, base: BaseModules, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.add(str(adapter), base=base)
    monkeypatch.setattr(checks, "is_within_bound", None)
    monkeypatch.setattr(AdapterStore, "_publish", None)
    assert store.add(str(adapter), base=base) == first


def test_what_is_there_already_must_fit_the_base_that_it_is_added_for(
    store: AdapterStore, adapter: Path, base: BaseModules, tmp_path: Path
) -> None:
    store.add(str(adapter), base=base)
    other = BaseModules.read(write_base(tmp_path / "other", prefix="model.language_model."))
    with pytest.raises(ModuleUnknown):
        store.add(str(adapter), base=other)
    with pytest.raises(RankRefused):
        store.add(str(adapter), base=base, max_rank=1)


def test_every_code_stands_in_the_table_for_users() -> None:
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    codes = {error.code for error in [*AdapterError.tree()[1:], StoreUnusable]}
    assert {code for code in codes if f"| `{code}` |" not in page} == set()


def test_the_store_needs_neither_torch_nor_an_engine() -> None:
    script = (
        "import sys; import stacked.store; "
        "heavy = {'torch', 'vllm', 'transformers', 'httpx', 'huggingface_hub'}; "
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
