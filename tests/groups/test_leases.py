"""Leases are released exactly once, and waiting ends with the last of them."""

from __future__ import annotations

import asyncio

import pytest

from stacked.groups.leases import Leases


async def test_waiting_ends_when_the_last_lease_is_released() -> None:
    leases = Leases()
    one, two = leases.take("a"), leases.take("a")
    waiting = asyncio.create_task(leases.until_free("a", 5))
    await asyncio.sleep(0)
    one.release()
    await asyncio.sleep(0)
    assert not waiting.done()
    two.release()
    assert await waiting is True
    assert leases.held("a") == 0


async def test_nothing_held_is_free_at_once_and_others_do_not_matter() -> None:
    leases = Leases()
    with leases.take("b"):
        assert await leases.until_free("a", 0) is True


async def test_waiting_gives_up_after_its_time_and_can_be_asked_again() -> None:
    leases = Leases()
    lease = leases.take("a")
    assert await leases.until_free("a", 0.01) is False
    lease.release()
    assert await leases.until_free("a", 0.01) is True


def test_releasing_twice_is_releasing_once() -> None:
    leases = Leases()
    first, _second = leases.take("a"), leases.take("a")
    first.release()
    first.release()
    assert leases.held("a") == 1


def test_lease_is_released_when_its_block_raises() -> None:
    leases = Leases()
    with pytest.raises(ValueError), leases.take("a"):
        raise ValueError
    assert leases.things() == []


async def test_waiting_for_all_of_them_ends_with_the_last() -> None:
    leases = Leases()
    held = [leases.take(thing) for thing in ("a", "a", None)]
    assert not await leases.until_all_free(0.01)
    asyncio.get_running_loop().call_later(0.01, held[0].release)
    asyncio.get_running_loop().call_later(0.02, held[1].release)
    asyncio.get_running_loop().call_later(0.03, held[2].release)
    assert await leases.until_all_free(5)
    assert leases.things() == []


async def test_all_holders_are_asked_to_end() -> None:
    leases = Leases()
    asked: list[str] = []
    leases.take("a", lambda: asked.append("a"))
    leases.take(None, lambda: asked.append("base"))
    leases.take("b")
    assert leases.end_all() == 2
    assert sorted(asked) == ["a", "base"]


async def test_what_is_lent_is_given_up_once_somebody_waits_for_the_thing() -> None:
    leases: Leases[str] = Leases()
    asked: list[str] = []
    for thing in ("a", "b"):
        assert leases.lend(thing, lambda thing=thing: asked.append(thing)) is not None
    waiting = asyncio.create_task(leases.until_free("a", 5))
    await asyncio.sleep(0)
    assert asked == ["a"]
    assert leases.lend("a", asked.clear) is None, "somebody waits for it"
    assert leases.lend("b", asked.clear) is not None
    waiting.cancel()


async def test_lent_lease_that_is_given_up_frees_the_thing() -> None:
    leases: Leases[str] = Leases()

    def give_up() -> None:
        asyncio.get_running_loop().call_soon(lease.release)

    lease = leases.lend("a", give_up)
    assert lease is not None
    assert await leases.until_free("a", 5)
    assert leases.lend("a", give_up) is not None, "nobody waits any more"


async def test_nothing_is_lent_once_all_is_to_end() -> None:
    leases: Leases[str] = Leases()
    asked: list[str] = []
    with leases.take("a"):
        leases.lend("b", lambda: asked.append("b"))
        assert not await leases.until_all_free(0.01)
        assert asked[0] == "b"
        assert leases.lend("b", asked.clear) is None
    assert leases.lend("a", asked.clear) is None
