"""Whatever goes wrong in an update, the old group serves on, and the next good update works.

Each row is one way to fail: damaged files, a full disk, an engine's call that fails or never
returns. One real engine goes through all of them, so that what one leaves behind fails the next.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stacked import loader
from stacked.core import Adapter
from stacked.engine import calls
from stacked.errors import AdapterError, RegistryUnusable, StackedError, StoreUnusable
from stacked.steps import Phase
from tests.live import faults
from tests.live.conftest import Known
from tests.live.faults import Fault
from tests.live.lab import Lab, Outcome

pytestmark = pytest.mark.engine

Damage = Callable[[Path], None]

DAMAGE: list[Damage] = [
    faults.weights_missing,
    faults.config_missing,
    faults.truncated,
    faults.bad_json,
    faults.rank_too_large,
    faults.wrong_shapes,
    faults.other_base,
    faults.not_a_number,
    faults.no_op,
    faults.pickle,
    faults.other_values,
]


@pytest.fixture(autouse=True)
def healthy(lab: Lab, known: Known) -> Iterator[None]:
    """Every test begins and ends with a group that answers right, and nothing beside it."""
    if set(lab.served()) != {"x", "y"}:  # as another file's tests left it
        swap_back(lab, known)
    check_serving(lab, known)
    check_clean(lab)
    yield
    lab.hooks.clear()
    lab.client.release()
    swap_back(lab, known)
    check_serving(lab, known)
    check_clean(lab)


def swap_back(lab: Lab, known: Known) -> None:
    """The next good update: the other one of two known adapters, behind the same key."""
    first, second, third = known.adapters[:3]
    other = third if lab.served().get("x") == first.digest else first
    outcome = lab.update({"x": other, "y": second})
    assert outcome.report is not None, outcome
    assert lab.served() == {"x": other.digest, "y": second.digest}


def check_serving(lab: Lab, known: Known) -> None:
    """Each key answers as the fresh engine did."""
    for key, digest in {**lab.served(), "base": "base"}.items():
        assert lab.run(lab.answer(key))[0] == known.answers[str(digest)][0], key


def check_clean(lab: Lab) -> None:
    """The engine holds what the group needs and nothing else, staged or adopted."""
    resident = lab.run(lab.engine.resident())
    assert resident.staged == frozenset()
    assert resident.host == lab.handles()
    assert {number for number in resident.slots if number} <= lab.handles()
    assert lab.run(lab.engine.list()) == lab.handles()
    assert lab.live.leases.things() == []


def refused(lab: Lab, victim: Adapter, refusal: StackedError | None = None) -> Outcome:
    """An update to a group with this adapter, which must fail and leave what was."""
    before = lab.live.routing
    outcome = lab.update({"x": victim, "y": before.members[1].content}, refusal)
    assert outcome.error is not None, outcome
    assert lab.live.routing is before
    assert not outcome.committed
    return outcome


def blames(outcome: Outcome, victim: Adapter) -> str:
    """The reason that is given for this model, and for no other."""
    assert list(outcome.blamed) == [victim.digest]
    return str(outcome.blamed[victim.digest])


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda each: each.__name__)
def test_adapter_damaged_after_it_was_registered_is_refused(lab: Lab, damage: Damage) -> None:
    victim = lab.add()
    faults.damaged(victim.path, damage)
    blames(refused(lab, victim), victim)
    check_clean(lab)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda each: each.__name__)
def test_adapter_damaged_once_it_was_read_is_served_as_it_was_read(
    lab: Lab, known: Known, damage: Damage
) -> None:
    """From the verification on nobody needs the files any more, until a restart."""
    victim = lab.add()
    right = lab.run(lab.alone(victim))
    lab.hooks[Phase.VERIFY] = lambda: faults.damaged(victim.path, damage)
    outcome = lab.update({"x": victim, "y": known.adapters[1]})
    assert outcome.report is not None, outcome
    assert lab.run(lab.answer("x"))[0] == right[0]
    check_clean(lab)


@pytest.mark.parametrize(
    "damage",
    [each for each in DAMAGE if each not in (faults.no_op, faults.other_values)],
    ids=lambda each: each.__name__,
)
def test_bad_adapter_is_refused_when_it_is_registered(
    lab: Lab, damage: Damage, tmp_path: Path
) -> None:
    source = faults.copied(lab.source(), tmp_path / "bad", damage)
    with pytest.raises(AdapterError):
        lab.add(source, max_rank=64)
    assert list((lab.root / "store" / "staging").iterdir()) == []


def test_adapter_that_changes_nothing_is_refused_by_its_canary(lab: Lab, tmp_path: Path) -> None:
    victim = lab.add(faults.copied(lab.source(), tmp_path / "noop", faults.no_op))
    assert "changes nothing" in blames(refused(lab, victim), victim)
    check_clean(lab)


def test_adapter_of_a_larger_rank_than_the_engine_takes_is_refused(
    lab: Lab, tmp_path: Path
) -> None:
    victim = lab.add(faults.copied(lab.source(), tmp_path / "rank", faults.rank_too_large))
    assert victim.rank == 128
    assert "rank 128" in blames(refused(lab, victim), victim)
    check_clean(lab)


def test_good_adapters_beside_a_bad_one_are_not_blamed(lab: Lab, known: Known) -> None:
    before, good, bad = lab.live.routing, lab.add(), lab.add()
    faults.damaged(bad.path, faults.truncated)
    outcome = lab.update({"x": good, "y": bad, "z": known.adapters[1]})
    assert lab.live.routing is before
    assert blames(outcome, bad) in str(outcome.error)
    check_clean(lab)


# -- a full disk -----------------------------------------------------------------------------------


def test_full_store_refuses_the_registration(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stacked.store.disk.flush", full)
    with pytest.raises(StoreUnusable, match="free some space"):
        lab.add()
    monkeypatch.undo()
    assert list((lab.root / "store" / "staging").iterdir()) == []


def test_disk_that_is_full_at_the_commit_keeps_the_old_group(lab: Lab) -> None:
    full = RegistryUnusable("database or disk is full; free some space, and try again")
    outcome = refused(lab, lab.add(), full)
    assert outcome.error is full
    assert outcome.blamed == {}
    check_clean(lab)


# -- the engine ------------------------------------------------------------------------------------

BEFORE_THE_SWITCH = [
    ("staging", "stage", 0),
    ("staging", "advance", 0),
    ("staging", "adopt", 0),
    ("staging", "activate", 0),
    ("verifying", "canary base", 0),
    ("verifying", "canary base", 1),
    ("verifying", "canary adapter", 0),
    ("verifying", "canary base", 2),
]
AFTER_THE_SWITCH = [
    ("removing", "discard", 0),
    ("removing", "list_loras", 0),
    ("removing", "remove", 0),
    ("removing", "list_loras", 1),
]
MODES = ["raises", "lost", "unanswered", "stuck"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 0.6)
    monkeypatch.setattr(loader, "_UNDO_SECONDS", 0.4)


def broken(lab: Lab, phase: str, point: str, skip: int, mode: str) -> Fault:
    """Break the engine's call from this phase on."""
    fault = Fault(point, mode, skip)

    def strike() -> None:
        lab.client.fault = fault

    lab.hooks[Phase(phase)] = strike
    return fault


def repaired(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    lab.client.release()
    lab.run(lab.client.settled())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("phase", "point", "skip"), BEFORE_THE_SWITCH)
@pytest.mark.usefixtures("impatient")
def test_engine_that_fails_before_the_switch_leaves_the_old_group(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, phase: str, point: str, skip: int, mode: str
) -> None:
    victim = lab.add()
    fault = broken(lab, phase, point, skip, mode)
    outcome = refused(lab, victim)
    assert fault.hits > skip, "the fault did not strike"
    said = "injected" if mode == "raises" else "no answer"
    assert said in str(outcome.error)
    if "base" not in point:  # that is nobody's fault
        assert said in blames(outcome, victim)
    if mode != "stuck":
        check_clean(lab)
    repaired(lab, monkeypatch)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("point", ["discard", "list_loras", "remove"])
@pytest.mark.usefixtures("impatient")
def test_what_could_not_be_undone_goes_with_the_next_update(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, point: str, mode: str, tmp_path: Path
) -> None:
    victim = lab.add(faults.copied(lab.source(), tmp_path / "noop", faults.no_op))
    fault = broken(lab, "verifying", point, 0, mode)
    assert "changes nothing" in blames(refused(lab, victim), victim)
    assert fault.hits > 0, "the fault did not strike"
    repaired(lab, monkeypatch)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("phase", "point", "skip"), AFTER_THE_SWITCH)
@pytest.mark.usefixtures("impatient")
def test_engine_that_fails_after_the_switch_serves_the_new_group(
    lab: Lab,
    known: Known,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    point: str,
    skip: int,
    mode: str,
) -> None:
    fault = broken(lab, phase, point, skip, mode)
    outcome = lab.update({"x": known.adapters[3], "y": known.adapters[1]})
    assert outcome.report is not None, outcome
    assert fault.hits > skip, "the fault did not strike"
    assert any("could not be removed" in line for line in outcome.log), outcome.log
    assert lab.served()["x"] == known.adapters[3].digest
    repaired(lab, monkeypatch)
