from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from stacked.ray.placement import Replica, ranked

KEYS = [f"key-{number}" for number in range(300)]


def crowded(count: int, **loads: int) -> list[Replica]:
    names = [f"r{number}" for number in range(count)]
    return [Replica(name, loads.get(name, 0), crowded=True) for name in names]


replicas = st.lists(
    st.builds(
        Replica,
        st.text("abcdef", min_size=1, max_size=4),
        st.integers(0, 50),
        st.booleans(),
        st.booleans(),
        st.frozensets(st.sampled_from(["a", "b"])),
    ),
    unique_by=lambda each: each.id,
    max_size=12,
)


@given(st.sampled_from([None, "a", "b", "c"]), replicas, st.integers(1, 4))
def test_each_replica_is_in_one_list_and_the_useless_ones_come_last(
    key: str | None, replicas: list[Replica], copies: int
) -> None:
    lists = ranked(key, replicas, copies)
    assert all(lists)
    assert Counter(id for some in lists for id in some) == Counter(r.id for r in replicas)
    by_id = {each.id: each for each in replicas}

    def worth(id: str) -> int:
        return 2 * by_id[id].ready + (by_id[id].ready and key not in by_id[id].lacks)

    worths = [{worth(id) for id in some} for some in lists]
    assert all(len(each) == 1 for each in worths)
    flat = [next(iter(each)) for each in worths]
    assert flat == sorted(flat, reverse=True)


def test_without_a_key_or_with_room_for_all_every_replica_is_as_good() -> None:
    assert ranked(None, crowded(4), 2) == [["r0", "r1", "r2", "r3"]]
    assert ranked("key", [Replica("a"), Replica("b", 9)], 1) == [["a", "b"]]


def test_a_key_has_the_same_replicas_whatever_their_order() -> None:
    for key in KEYS[:20]:
        first = ranked(key, crowded(5), 2)[0]
        assert len(first) == 2
        assert ranked(key, crowded(5)[::-1], 2)[0] == first


def test_keys_are_spread_evenly() -> None:
    placed = Counter(id for key in KEYS for id in ranked(key, crowded(5), 2)[0])
    assert all(80 < count < 160 for count in placed.values())  # 120 each


def test_a_replica_more_moves_only_its_part() -> None:
    before = {key: set(ranked(key, crowded(5), 2)[0]) for key in KEYS}
    after = {key: set(ranked(key, crowded(6), 2)[0]) for key in KEYS}
    moved = [key for key in KEYS if after[key] != before[key]]
    assert all("r5" in after[key] and len(after[key] - before[key]) == 1 for key in moved)
    assert 60 < len(moved) < 140  # a third


def test_a_replica_with_more_than_its_part_is_passed_over() -> None:
    free = ranked("key", crowded(4), 2)[0]
    full = ranked("key", crowded(4, **{free[0]: 40}), 2)
    assert full[0][0] == free[1]
    assert free[0] not in full[0]
    assert free[0] in full[1]


def test_all_of_them_full_leaves_all_in_their_order() -> None:
    loads = {f"r{number}": 100 for number in range(4)}
    assert len(ranked("key", crowded(4, **loads), 2)[0]) == 2
