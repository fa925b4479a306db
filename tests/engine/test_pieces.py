"""What is read of the server's own prompts in a step, on a double of vLLM's scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from stacked.engine.pieces import PIECE, Pieces, mark


def request(own: bool = False, reading: bool = True) -> Any:
    params = SimpleNamespace(extra_args=None)
    if own:
        mark(params)
    return SimpleNamespace(
        sampling_params=params, is_prefill_chunk=reading, next_decode_eligible_step=0
    )


class Queue(list[Any]):
    """vLLM's queue of requests, as far as it is used."""

    add_request = list.append

    def remove_requests(self, some: Sequence[Any]) -> None:
        self[:] = [each for each in self if each not in some]


class Scheduler:
    def __init__(self, running: Sequence[Any], waiting: Sequence[Any] = (), bound: int = 0) -> None:
        self.running, self.waiting = list(running), Queue(waiting)
        self.scheduler_config = SimpleNamespace(long_prefill_token_threshold=bound)
        self.current_step, self.num_spec_tokens = 7, 0
        self.pieces = Pieces()

    def step(self) -> tuple[int, list[Any]]:
        """The bound for each prompt in the next step (0: none), and what may be read in it."""
        with self.pieces.step(self):
            self.current_step += 1
            bound = self.scheduler_config.long_prefill_token_threshold
            reading = [each for each in self.running if each.is_prefill_chunk]
            due = [r for r in reading if r.next_decode_eligible_step <= self.current_step]
            return bound, [*due, *self.waiting]


CLIENT, DECODING, POOLING = request(), request(reading=False), request()
POOLING.sampling_params = None


def test_pieces_are_for_steps_in_which_clients_tokens_are_made() -> None:
    own, begins = request(own=True), request(own=True)
    assert Scheduler([own, DECODING]).step() == (PIECE, [own])
    assert Scheduler([own, DECODING], [begins]).step() == (PIECE // 2, [own, begins])
    assert Scheduler([request(own=True, reading=False), own]).step() == (0, [own])
    assert Scheduler([DECODING], [CLIENT]).step() == (0, [CLIENT])
    many = [request(own=True) for _ in range(2 * PIECE)]
    assert Scheduler([*many, DECODING]).step()[0] == 1


def test_a_bound_of_the_user_holds_and_drafts_are_not_cut() -> None:
    own = request(own=True)
    lower = Scheduler([own, DECODING], bound=2)
    assert lower.step()[0] == 2
    assert lower.scheduler_config.long_prefill_token_threshold == 2
    assert Scheduler([own, DECODING], bound=512).step()[0] == PIECE
    drafting = Scheduler([own, DECODING])
    drafting.num_spec_tokens = PIECE
    assert drafting.step()[0] == PIECE + 1


@pytest.mark.parametrize("client", [CLIENT, POOLING])
def test_own_prompts_wait_while_a_clients_is_read_but_not_for_ever(client: Any) -> None:
    own, begins = request(own=True), request(own=True)
    scheduler = Scheduler([own, DECODING], [client, begins])
    for _ in range(3):
        steps = [scheduler.step() for _ in range(17)]
        assert steps[:16] == [(0, [client])] * 16
        bound, read = steps[16]
        assert (bound, len(read)) == (0, 3)
    assert scheduler.waiting == [client, begins]
    scheduler.waiting.remove(client)
    assert scheduler.step() == (PIECE // 2, [own, begins])


def test_nothing_is_lost_when_a_step_fails() -> None:
    begins = request(own=True)
    scheduler = Scheduler([DECODING], [CLIENT, begins])
    with pytest.raises(RuntimeError), scheduler.pieces.step(scheduler):
        raise RuntimeError("the engine is dying")
    assert scheduler.waiting == [CLIENT, begins]


def test_a_long_queue_is_left_to_vllm() -> None:
    waiting = [request() for _ in range(100)]
    own = request(own=True)
    bound, read = Scheduler([own, DECODING], waiting).step()
    assert (bound, read) == (0, waiting)  # it is held, as clients' prompts wait
