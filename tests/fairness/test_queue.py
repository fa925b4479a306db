"""The fair queue: shares, slots, newcomers, classes, and that nobody waits for ever."""

from __future__ import annotations

import itertools
import random
import sys
from functools import partial
from statistics import mean, median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacked.fairness import Capacity, FairQueue, Share, Ticket
from tests.fairness.engine import Client, VllmOrder, check, queue, simulate


def test_request_of_an_idle_engine_does_not_wait() -> None:
    fair = queue()
    ticket = Ticket(Share("alice", "sql"), adapter=1)
    fair.ask(ticket, 0)
    assert fair.next(0) is ticket
    assert fair.next(0) is None


def test_two_saturating_keys_get_the_same_however_many_clients_they_have() -> None:
    many, few = Share("anyone", "many"), Share("anyone", "few")
    clients = [*[Client(many)] * 40, *[Client(few)] * 10]
    tokens = simulate(queue(seats=8), clients, 2000).tokens
    assert 0.9 < tokens[many] / tokens[few] < 1.1


def test_callers_share_by_weight_and_divide_their_share_between_their_keys() -> None:
    heavy = Share("heavy", "a", caller_weight=3)
    light = [Share("light", key) for key in "bcd"]
    clients = [Client(share) for share in (heavy, *light) for _ in range(16)]
    tokens = simulate(queue(seats=8), clients, 4000).tokens
    assert 2.7 < tokens[heavy] / sum(tokens[share] for share in light) < 3.3
    assert 0.85 < tokens[light[0]] / tokens[light[2]] < 1.15


@given(weights=st.lists(st.integers(1, 8), min_size=2, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_shares_follow_weights_whatever_the_requests_are(weights: list[int], seed: int) -> None:
    """The bound of fair queueing: two flows differ by a few of their largest requests, for ever."""
    chance = random.Random(seed)
    shares = [Share("anyone", f"k{at}", key_weight=weight) for at, weight in enumerate(weights)]
    clients = [
        Client(share, None, prompt=chance.randrange(1, 30), answer=chance.randrange(1, 30))
        for share in shares
        for _ in range(12)
    ]
    begun = simulate(queue(seats=6, step=128), clients, 1500).begun
    for one, other in itertools.combinations(shares, 2):
        far = abs(begun[one] / one.key_weight - begun[other] / other.key_weight)
        assert far <= 3 * 90 * (1 / one.key_weight + 1 / other.key_weight)


def test_newcomer_is_let_in_at_once_while_another_key_has_all_other_seats() -> None:
    busy, rare = Share("anyone", "busy"), Share("anyone", "rare")
    clients = [Client(busy, answer=200) for _ in range(200)]
    run = simulate(queue(seats=64, step=64), [*clients, Client(rare, answer=2)], 1500)
    waits = sorted(wait for client, wait in run.waits if client.share is rare)
    assert len(waits) > 100
    assert waits[-1] == 0


def test_newcomer_goes_before_what_the_engine_has_not_begun() -> None:
    fair = queue(seats=64, step=16)
    for _ in range(40):
        fair.ask(Ticket(Share("anyone", "busy"), prompt=16), 0)
    inside = list(iter(lambda: fair.next(0), None))
    rare = Ticket(Share("anyone", "rare"), prompt=16)
    fair.ask(rare, 0)
    assert fair.next(0) is rare
    assert len(inside) == 4  # steps that the engine has to read; the others wait here
    assert rare.rank < inside[1].rank


@given(
    adapters=st.integers(2, 12),
    slots=st.integers(1, 4),
    clients=st.integers(1, 5),
    base=st.integers(0, 4),
)
@settings(max_examples=15)
def test_nobody_starves_with_more_adapters_than_slots(
    adapters: int, slots: int, clients: int, base: int
) -> None:
    """Each adapter gets its turn within one of each other adapter, base included.

    A turn is the longest wait, and the time in which requests in flight end.
    """
    shares = {at: Share("anyone", f"a{at}") for at in range(adapters)}
    asking = [Client(share, at) for at, share in shares.items() for _ in range(clients)]
    asking += [Client(Share("anyone", "base"))] * base
    fair = queue(seats=64, slots=slots, step=64, longest_wait=30)
    run = simulate(fair, asking, 1500)
    assert run.longest() <= (30 + 20) * (adapters + 1)
    assert run.longest(lambda client: client.adapter is None) <= 40
    served = [run.tokens[share] for share in shares.values()]
    assert max(served) <= 2 * min(served) + 16 * clients * 4


@pytest.mark.parametrize(("each", "least"), [(1, 1.0), (3, 0.97), (8, 0.97)])
def test_who_waits_for_ever_in_vllms_order_does_not_here(each: int, least: float) -> None:
    """Twelve adapters and the base in four slots, all without a pause, answers of many lengths.

    Steps take as long whatever is in them, where a slot that is being emptied costs most.
    """
    shares = [Share("anyone", f"a{at}") for at in range(12)]
    asking = [
        Client(share, at if at else None, prompt=32, answer=8 + (at * 31 + nth * 17) % 97)
        for at, share in enumerate([Share("anyone", "base"), *shares])
        for nth in range(each)
    ]
    capacity = Capacity(seats=128, slots=4, step=256)
    theirs = simulate(VllmOrder(capacity), asking, 5000)
    ours = simulate(FairQueue(capacity, longest_wait=1e9), asking, 5000)
    if each > 1:
        assert sum(theirs.tokens[share] > 0 for share in shares) == 4
        assert theirs.longest() == 5000
    assert min(ours.tokens[share] for share in shares) > 0
    assert ours.longest() < 3500
    assert ours.tokens.total() >= least * theirs.tokens.total()


@pytest.mark.parametrize("clients", [16, 64])
@pytest.mark.parametrize("adapters", [3, 12])
def test_requests_to_any_key_are_as_many_and_as_fast_as_in_vllms_order(
    clients: int, adapters: int
) -> None:
    """In four slots: the load of `stacked bench online`, and one with three times the adapters."""
    asking = [
        Client(Share(), prompt=32, answer=8 + at * 31 % 97, among=(None, *range(adapters)))
        for at in range(clients)
    ]
    capacity = Capacity(seats=128, slots=4, step=256)
    theirs = simulate(VllmOrder(capacity), asking, 3000)
    ours = simulate(FairQueue(capacity, longest_wait=300), asking, 3000)
    assert ours.ended >= 0.97 * theirs.ended
    assert mean(ours.first()) <= 1.03 * mean(theirs.first())
    if adapters == 3:
        assert median(ours.first()) <= 1.03 * median(theirs.first())


@pytest.mark.parametrize(("prompt", "clients"), [(32, 64), (32, 200), (256, 64), (256, 200)])
def test_newcomers_first_token_takes_two_times_what_it_does_alone_and_a_step(
    prompt: int, clients: int
) -> None:
    """Beside one key that saturates the engine, with short prompts and with a step's worth each."""
    rare = Client(Share("anyone", "rare"), prompt=32, answer=8, begins=200)
    busy = [
        Client(Share("anyone", "busy"), prompt=prompt, answer=32 + at % 64) for at in range(clients)
    ]
    capacity = Capacity(seats=128, slots=4, step=256)
    firsts = {
        kind: simulate(kind(capacity), [*busy, rare], 1500).first(lambda each: each == rare)
        for kind in (FairQueue, VllmOrder)
    }
    alone = median(simulate(FairQueue(capacity), [rare], 300).first())
    assert alone == 1
    assert median(firsts[FairQueue]) <= 2 * alone + 1
    if prompt == 256:
        assert median(firsts[VllmOrder]) > 10


def test_slot_is_kept_for_a_step_of_tokens_while_others_wait() -> None:
    shares = [Share("anyone", f"a{at}") for at in range(6)]
    asking = [
        Client(share, at, answer=5 + nth) for at, share in enumerate(shares) for nth in range(8)
    ]
    run = simulate(queue(seats=64, slots=2, step=256), asking, 2000)
    assert run.changes * 256 <= sum(run.tokens.values()) * 2
    assert min(run.tokens.values()) > 0


def test_slots_are_shared_by_weight_too() -> None:
    weights = (1, 1, 1, 3)
    shares = [Share("anyone", f"a{at}", key_weight=each) for at, each in enumerate(weights)]
    asking = [
        Client(share, at, answer=5 + nth) for at, share in enumerate(shares) for nth in range(8)
    ]
    tokens = simulate(queue(seats=64, slots=1, step=512), asking, 6000).tokens
    assert 2 < tokens[shares[3]] / tokens[shares[0]] < 4


def test_claim_that_is_given_up_opens_the_adapter_that_was_emptied_for_it() -> None:
    fair = queue(slots=1, longest_wait=5)
    first, second = Share("anyone", "first"), Share("anyone", "second")
    running = Ticket(first, 1, prompt=8, most=8)
    fair.ask(running, 0)
    assert fair.next(0) is running
    later = Ticket(first, 1, prompt=8, most=8)
    claim = Ticket(second, 2)
    fair.ask(claim, 0)
    assert fair.next(0) is None
    assert fair.next(9) is None  # closes the only slot, as it was held for long enough
    fair.ask(later, 9)
    assert fair.next(9) is None
    fair.leave(claim)
    assert fair.next(9) is later


def test_adapters_own_check_takes_the_next_slot_and_no_seat() -> None:
    fair = queue(seats=2, slots=1)
    for _ in range(4):
        fair.ask(Ticket(Share("anyone", "a"), 1), 0)
    inside = list(iter(lambda: fair.next(0), None))
    canary = Ticket(Share(urgent=True), 2)
    fair.ask(canary, 0)
    assert fair.next(0) is None
    for each in inside:
        fair.leave(each, 1, 1)
    assert fair.next(0) is canary
    base = Ticket(Share(urgent=True), None)
    fair.ask(base, 0)
    assert fair.next(0) is base


def test_batch_requests_get_their_small_share_and_no_more_while_others_wait() -> None:
    person, batch = Share("anyone", "a"), Share("anyone", "a", batch=True)
    clients = [Client(share) for share in (person, batch) for _ in range(30)]
    run = simulate(queue(seats=8, batch_share=0.1), clients, 4000)
    part = run.tokens[batch] / sum(run.tokens.values())
    assert 0.08 < part < 0.13
    alone = simulate(queue(seats=8), [Client(batch)] * 30, 400)
    assert alone.tokens[batch] > 0.9 * 400 * 8 / 9 * 16 * 0.8


def test_no_prompt_waits_for_those_that_are_read_in_pieces() -> None:
    fair, now = queue(seats=8, step=16), itertools.count()
    own = [Ticket(Share("gates", batch=True, background=True), prompt=1000) for _ in range(4)]
    client = Ticket(Share("alice"), prompt=1000)
    for ticket in (*own, client):
        fair.ask(ticket, next(now))
    assert {fair.next(next(now)) for _ in range(5)} == {*own, client}
    for ticket in own:
        fair.read(ticket)
        fair.leave(ticket, 1000, 1)
    fair.ask(other := Ticket(Share("alice"), prompt=1000), next(now))
    assert fair.next(next(now)) is other
    fair.ask(third := Ticket(Share("alice"), prompt=1000), next(now))
    assert fair.next(next(now)) is None  # of clients', two are read at a time
    fair.read(client)
    assert fair.next(next(now)) is third


def test_flow_of_a_tiny_weight_has_its_turn_after_the_longest_wait() -> None:
    tiny, busy = Share("tiny", "a", caller_weight=1e-6), Share("busy", "a")
    clients = [Client(tiny), *[Client(busy)] * 30]
    run = simulate(queue(seats=4, longest_wait=100), clients, 4000)
    waits = [wait for client, wait in run.waits if client.share is tiny]
    assert len(waits) > 20
    assert max(waits) <= 130


def test_stream_of_newcomers_starves_nobody() -> None:
    """Each of them is a caller of its own, and they alone fill the engine."""
    fair = queue(seats=2, longest_wait=50)
    busy = [Ticket(Share("busy", "a"), prompt=8) for _ in range(40)]
    for each in busy:
        fair.ask(each, 0)
    began: dict[Ticket, int] = {}
    running: list[Ticket] = []
    for now in range(1000):
        for at in range(2):
            fair.ask(Ticket(Share(f"new{now}-{at}", "a")), now)
        for each in running:
            fair.leave(each, 1, 1)
        running = list(iter(partial(fair.next, now), None))
        began |= dict.fromkeys(running, now)
    assert all(each in began for each in busy[:10])


@given(st.data())
@settings(max_examples=60)
def test_promises_hold_whatever_is_asked_given_up_and_ended(data: st.DataObject) -> None:
    fair = queue(seats=5, slots=2, step=16)
    waiting: list[Ticket] = []
    running: list[Ticket] = []
    for now in range(data.draw(st.integers(1, 60))):
        act = data.draw(st.sampled_from(("ask", "end", "read", "give up")))
        if act == "ask":
            ticket = Ticket(
                Share(data.draw(st.sampled_from("xy")), "k", batch=data.draw(st.booleans())),
                data.draw(st.sampled_from((None, 1, 2, 3, 4))),
                data.draw(st.integers(1, 100)),
                data.draw(st.one_of(st.none(), st.integers(1, 50))),
            )
            fair.ask(ticket, now)
            waiting.append(ticket)
        elif act == "end" and running:
            each = running.pop(data.draw(st.integers(0, len(running) - 1)))
            fair.leave(each, data.draw(st.integers(0, each.prompt)), data.draw(st.integers(0, 99)))
        elif act == "read" and running:
            fair.read(data.draw(st.sampled_from(running)))
        elif act == "give up" and waiting:
            fair.leave(waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
        while (let_in := fair.next(now)) is not None:
            waiting.remove(let_in)
            running.append(let_in)
        check(fair, waiting, running)
    for each in (*waiting, *running):
        fair.leave(each)
    assert not fair.waiting
    assert not fair.adapters
    assert not fair._lanes
    assert not fair._shares._active


def test_decision_among_ten_thousand_is_no_more_work_than_among_a_hundred() -> None:
    """Counted in calls, as no test asserts how long something took."""
    few, many = calls_of_a_decision(100), calls_of_a_decision(10_000)
    assert many < 1.5 * few


def calls_of_a_decision(number: int) -> float:
    """The mean of calls from `ask` to `leave` while so many requests wait."""
    fair = queue(seats=4, slots=2)
    tickets = [Ticket(Share(f"c{at % 997}", f"k{at % 13}"), at % 13) for at in range(number)]
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        for each in tickets:
            fair.ask(each, 0)
        while inside := list(iter(partial(fair.next, 0), None)):
            for each in inside:
                fair.leave(each, 1, 1)
    finally:
        sys.setprofile(None)
    assert not fair.waiting
    return calls / number
