"""The catalogue below HTTP: which base an adapter is of, and what a kill at any instant leaves."""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stacked.catalogue import FINE_TUNE_SOURCE, Catalogue
from stacked.core import check_digest
from stacked.errors import (
    ModuleUnknown,
    ParameterInvalid,
    RecordAbsent,
    SourceNotFound,
    SourceRefused,
    TokensDiffer,
)
from stacked.registry import MODEL, Model, ModelState, Query, Registry, new_id
from stacked.store import AdapterStore, Incoming
from tests.api.control.plane import BASE, control_plane, packed, stock, zipped
from tests.store.small import write_adapter, write_base, write_json

KILLS = 6


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "registry.sqlite") as opened:
        yield opened


@pytest.fixture
def catalogue(registry: Registry, tmp_path: Path) -> Catalogue:
    """An empty one."""
    store = AdapterStore(tmp_path / "store")
    roots = [str(tmp_path / "roots")]
    return Catalogue(registry, store, tmp_path / "artifacts", roots=roots)


def sent(catalogue: Catalogue, data: bytes) -> Incoming:
    incoming = catalogue.files.receive(len(data))
    incoming.write(data)
    incoming.finish()
    return incoming


def new(catalogue: Catalogue, **extra: object) -> str:
    model = Model(id=new_id(MODEL), display_name="m", extra=extra)
    return catalogue.registry.models.put(model).id


def test_the_base_of_an_adapter_is_the_one_that_is_named_served_or_alone(
    catalogue: Catalogue, registry: Registry, tmp_path: Path
) -> None:
    data = packed(tmp_path / "roots", 1)
    id = new(catalogue)
    with pytest.raises(ParameterInvalid, match="no bases"):
        catalogue.fill(id, sent(catalogue, data))
    first = new(catalogue)
    catalogue.fill(first, sent(catalogue, zipped(write_base(tmp_path / "roots" / "first"))))
    assert catalogue.fill(id, sent(catalogue, data)).base_model_id == first
    second = new(catalogue)
    other = write_base(tmp_path / "roots" / "second", layers=1)
    catalogue.fill(second, sent(catalogue, zipped(other)))
    with pytest.raises(ParameterInvalid, match=FINE_TUNE_SOURCE):
        catalogue.fill(id, sent(catalogue, data))
    named = new(catalogue, custom_metadata=[{"key": FINE_TUNE_SOURCE, "value": first}])
    assert catalogue.fill(named, sent(catalogue, data)).base_model_id == first
    wrong = new(catalogue, custom_metadata=[{"key": FINE_TUNE_SOURCE, "value": second}])
    with pytest.raises(ModuleUnknown):
        catalogue.fill(wrong, sent(catalogue, data))
    assert registry.models.get(wrong).kind == ""
    stock(registry, write_base(tmp_path / "roots" / "served"))
    assert catalogue.fill(id, sent(catalogue, data)).base_model_id == BASE


def test_a_source_that_is_no_path_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    stock(catalogue.registry, write_base(tmp_path / "roots" / "base"))
    circle = tmp_path / "roots" / "circle"
    circle.symlink_to(circle)
    for source in (str(circle), f"file://{circle}", "/x\0y", "~nobody-of-that-name/x"):
        with pytest.raises((SourceRefused, SourceNotFound)):
            catalogue.register(Model(id=""), source)


def test_a_template_goes_up_and_down_with_its_adapter(
    catalogue: Catalogue, registry: Registry, tmp_path: Path
) -> None:
    stock(registry, write_base(tmp_path / "roots" / "base"))
    bare = write_adapter(tmp_path / "roots" / "bare", r=4)
    own = write_adapter(tmp_path / "roots" / "own", r=4)
    (own / "chat_template.jinja").write_text("{{ messages }}")
    plain, kept = (catalogue.register(Model(id=""), str(path)) for path in (bare, own))
    assert plain.digest != kept.digest
    _, file = catalogue.open(kept.id)
    with file:
        data = file.read()
    assert catalogue.fill(new(catalogue), sent(catalogue, data)).digest == kept.digest
    assert catalogue.fill(new(catalogue), sent(catalogue, zipped(own))).digest == kept.digest


def test_tokens_that_the_base_lacks_come_in_where_that_is_said(
    registry: Registry, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "roots" / "base")
    write_json(base / "added_tokens.json", {"<s>": 0})
    stock(registry, base)
    adapter = write_adapter(tmp_path / "roots" / "adapter")
    write_json(adapter / "added_tokens.json", {"<s>": 0, "<think>": 40})
    for foreign in (False, True):
        catalogue = Catalogue(
            registry,
            AdapterStore(tmp_path / "store"),
            tmp_path / "artifacts",
            roots=[str(tmp_path / "roots")],
            foreign_tokens=foreign,
        )
        with contextlib.nullcontext() if foreign else pytest.raises(TokensDiffer, match="think"):
            catalogue.register(Model(id=""), str(adapter))
        with contextlib.nullcontext() if foreign else pytest.raises(TokensDiffer, match="think"):
            catalogue.fill(new(catalogue), sent(catalogue, zipped(adapter)))


def test_a_base_is_handed_over_with_its_place_and_key(
    catalogue: Catalogue, registry: Registry, tmp_path: Path
) -> None:
    stock(registry, write_base(tmp_path / "roots" / "served"))
    base = catalogue.bases.base(BASE, "the-key")
    assert (base.model_id, base.key) == (BASE, "the-key")
    assert base.path == str(tmp_path / "roots" / "served")
    assert catalogue.bases.modules(registry.models.get(BASE)).layers == 2
    adapter = new(catalogue)
    catalogue.fill(adapter, sent(catalogue, packed(tmp_path / "roots", 1)))
    with pytest.raises(ParameterInvalid, match="no base"):
        catalogue.bases.base(adapter, "k")
    with pytest.raises(RecordAbsent):
        catalogue.bases.base("none", "k")


def test_a_link_in_the_roots_leads_nowhere_else(
    catalogue: Catalogue, registry: Registry, tmp_path: Path
) -> None:
    stock(registry, write_base(tmp_path / "roots" / "served"))
    (tmp_path / "roots" / "link").symlink_to(write_base(tmp_path / "outside"))
    for source in (tmp_path / "roots" / "link", tmp_path / "roots" / ".." / "outside"):
        with pytest.raises(SourceRefused, match="outside the directories"):
            catalogue.register(Model(id=""), str(source))
    assert [model.id for model in registry.models.list().items] == [BASE]


def test_a_kill_at_any_instant_leaves_whole_models_or_empty_ones(tmp_path: Path) -> None:
    with control_plane(tmp_path):
        pass
    for seed in range(3):
        (tmp_path / f"{seed}.zip").write_bytes(packed(tmp_path / "roots", seed))
    instants = random.Random(7)
    done: set[str] = set()
    for at in range(KILLS):
        done |= killed_writer(tmp_path, instants.uniform(0.05, 0.6), uploads=at % 2)
        check_whole(tmp_path, done)
    assert done, "some uploads were done"


def killed_writer(place: Path, seconds: float, uploads: int) -> set[str]:
    """Run the writer, kill it so long after that many uploads; the ids that it said were filled."""
    command = [sys.executable, "-m", "tests.catalogue_writer", str(place)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    said = "".join(process.stdout.readline() for _ in range(uploads))
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    said += process.stdout.read()
    process.wait()
    whole = said if said.endswith("\n") else said.rpartition("\n")[0]
    return set(whole.split())


def check_whole(place: Path, done: set[str]) -> None:
    with Registry(place / "registry.sqlite") as registry:
        store, files = AdapterStore(place / "store"), place / "artifacts"
        catalogue = Catalogue(registry, store, files)
        rows = {model.id: model for model in all_models(registry) if model.kind != "base"}
        for id, model in rows.items():
            if not model.kind or model.state is ModelState.DELETED:
                assert id not in done
                assert registry.artifacts.of(id) == ()
                continue
            store.verify(check_digest(model.digest))
            artifact, file = catalogue.open(id)
            with file:
                assert hashlib.sha256(file.read()).hexdigest() == artifact.sha256
        assert done <= rows.keys()
        there = {path.name for path in files.iterdir() if path.is_file()}
        assert there == registry.artifacts.files()
        assert list((files / "incoming").iterdir()) == []


def all_models(registry: Registry) -> Iterator[Model]:
    page = None
    while True:
        found = registry.models.list(Query(limit=1000, page=page))
        yield from found.items
        page = found.next
        if page is None:
            return


def test_an_adapter_by_source_is_recorded_with_its_base(
    catalogue: Catalogue, registry: Registry, tmp_path: Path
) -> None:
    stock(registry, write_base(tmp_path / "roots" / "served"))
    place = write_adapter(tmp_path / "roots" / "a")
    made = catalogue.register(Model(id="", display_name="a"), str(place))
    assert (made.kind, made.base_model_id, made.source) == ("adapter", BASE, str(place))
    assert catalogue.register(Model(id="", display_name="b"), f"file://{place}").id == made.id
