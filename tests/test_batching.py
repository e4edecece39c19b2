"""serving/batching.py: what goes into the next decode."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from serving.batching import (
    Budget,
    Patience,
    Piece,
    Prompt,
    after,
    chunk_sizes,
    largest_chunk,
    largest_chunks,
    next_pieces,
    next_round,
    shares,
)

BUDGET = Budget(batch=64, chunk=16)


def test_no_turns_give_an_empty_decode() -> None:
    assert next_pieces([], [], BUDGET) == ()


def test_decoding_turns_get_one_token_each_in_order() -> None:
    assert next_pieces([7, 3], [], BUDGET) == (Piece(7, 1, True), Piece(3, 1, True))


def test_a_lone_prompt_fills_the_batch() -> None:
    assert next_pieces([], [Prompt(1, 100)], BUDGET) == (Piece(1, 64, False),)


def test_the_end_of_a_prompt_asks_for_a_token() -> None:
    assert next_pieces([], [Prompt(1, 36)], BUDGET) == (Piece(1, 36, True),)


def test_a_prompt_beside_a_decoding_turn_enters_in_chunks_behind_it() -> None:
    assert next_pieces([2], [Prompt(1, 100)], BUDGET) == (Piece(2, 1, True), Piece(1, 16, False))


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    assert next_pieces([], [Prompt(1, 5000), Prompt(2, 10)], BUDGET) == (
        Piece(1, 54, False),
        Piece(2, 10, True),
    )


def test_equal_prompts_are_ready_one_after_the_other() -> None:
    assert shares([100, 100, 100], 64) == [64, 0, 0]
    assert shares([10, 100, 100], 64) == [10, 54, 0]


def test_the_first_prompt_has_half_and_the_shortest_the_rest() -> None:
    assert shares([100, 60, 20], 65) == [33, 12, 20]
    assert shares([100, 90, 70], 3) == [2, 0, 1]
    assert shares([], 5) == []


def test_more_decoding_turns_than_the_batch_takes_leave_the_last_ones_out() -> None:
    assert [piece.turn for piece in next_pieces([1, 2, 3], [Prompt(4, 9)], Budget(2, 1))] == [1, 2]


def test_shares_leave_nothing_over_while_someone_wants_more() -> None:
    assert shares([1, 50, 2, 50], 20) == [1, 17, 2, 0]


def test_a_round_is_one_decode_of_everybody() -> None:
    assert next_round([2], [Prompt(1, 100)], BUDGET) == ((Piece(2, 1, True), Piece(1, 16, False)),)
    assert next_round([], [], BUDGET) == ()


def test_an_exact_round_is_a_decode_for_each_and_one_prompt_gets_a_batch() -> None:
    exact = Budget(64, 16, exact=True)
    assert next_round([2, 3], [Prompt(1, 100), Prompt(4, 7)], exact) == (
        (Piece(2, 1, True),),
        (Piece(3, 1, True),),
        (Piece(1, 64, False),),
    )
    assert next_round([], [Prompt(4, 7)], exact) == ((Piece(4, 7, True),),)
    assert next_round([], [], exact) == ()


def test_who_came_first_stays_first_unless_there_is_room_for_one_prompt_only() -> None:
    prompts = [Prompt(1, 100), Prompt(2, 100), Prompt(3, 100)]
    for budget, behind in (
        (Budget(64, 2), ()),
        (Budget(64, 1), (1,)),
        (Budget(64, 2, exact=True), (1,)),
    ):
        assert after(prompts, next_round([7], prompts, budget), budget) == behind
        assert after([], next_round([7], [], budget), budget) == ()


def test_chunks_shrink_while_steps_are_not_bearable_and_are_whole_afterwards() -> None:
    patience = Patience()
    patience.took(1, 0, 1.0)
    for _ in range(3):
        assert patience.fitted(BUDGET) == BUDGET
        patience.took(1, 16, 5.0)
    assert patience.fitted(Budget(64, 16, beside_more=(20, 1))) == Budget(64, 8, beside_more=(10, 1))
    for _ in range(3):
        patience.took(1, 8, 3.5)
    assert patience.fitted(BUDGET).chunk == 6
    patience.took(1, 0, 1.0)
    assert patience.fitted(BUDGET) == BUDGET


def test_one_slow_step_is_an_accident() -> None:
    patience = Patience()
    patience.took(1, 0, 1.0)
    for seconds in (50.0, 50.0, 3.0, 50.0, 50.0):
        patience.took(1, 16, seconds)
    assert patience.fitted(BUDGET) == BUDGET


def test_what_was_never_seen_without_a_prompt_is_not_judged() -> None:
    patience = Patience()
    patience.took(1, 0, 1.0)
    for _ in range(9):
        patience.took(2, 16, 50.0)
        patience.took(0, 16, 50.0)
    assert patience.fitted(BUDGET) == BUDGET


def test_chunks_to_measure_double_up_to_the_most() -> None:
    assert chunk_sizes(100) == (2, 4, 8, 16, 32, 64, 100)
    assert chunk_sizes(64) == (2, 4, 8, 16, 32, 64)
    assert chunk_sizes(3) == (2, 3)
    assert chunk_sizes(1) == (1,)


def test_a_chunk_costs_a_neighbour_two_single_steps_at_most() -> None:
    assert largest_chunk(1.0, 1.0, [(8, 1.5), (16, 2.0), (32, 4.0)]) == 24
    assert largest_chunk(1.0, 1.0, [(8, 1.5), (16, 3.0), (32, 4.0)]) == 16


def test_the_largest_chunk_that_was_measured_is_taken_if_it_is_bearable() -> None:
    assert largest_chunk(1.0, 1.0, [(8, 1.5), (16, 2.0)]) == 16


def test_neighbours_whose_step_takes_longer_bear_a_larger_chunk() -> None:
    measured = [(4, 3.0), (8, 5.0), (16, 9.0), (32, 17.0)]
    assert largest_chunks(1.0, 3.0, 5, measured) == (4, 6, 8, 10)
    assert largest_chunks(1.0, 0.9, 3, measured) == (4, 4)


def test_the_chunk_follows_the_number_of_decoding_turns() -> None:
    budget = Budget(64, 4, beside_more=(6, 8))
    for decoding, chunk in ((1, 4), (2, 6), (3, 8), (5, 8)):
        assert budget.beside(decoding) == chunk
        pieces = next_pieces(range(decoding), [Prompt(9, 50)], budget)
        assert pieces[-1] == Piece(9, chunk, False)


def test_a_chunk_is_never_empty() -> None:
    assert largest_chunk(1.0, 1.0, [(8, 100.0)]) == 1
    assert largest_chunk(1.0, 1.0, []) == 1


@given(st.lists(st.integers(1, 500), max_size=12), st.integers(0, 300))
def test_shares_are_fair_and_whole(wants: list[int], room: int) -> None:
    given_ = shares(wants, room)
    assert all(0 <= share <= want for share, want in zip(given_, wants, strict=True))
    assert sum(given_) == min(room, sum(wants))
    if wants:
        assert given_[0] >= min(wants[0], room / 2)
    # Of the others none is cut short for a longer one.
    others = sorted(zip(wants[1:], given_[1:], strict=True), key=lambda pair: pair[0])
    assert not any(share for (short, got), (_, share) in itertools.pairwise(others) if got < short)


@given(
    decoding=st.integers(0, 8),
    lefts=st.lists(st.integers(1, 200), max_size=8),
    chunk=st.integers(1, 64),
)
def test_every_turn_ends_within_the_budget(decoding: int, lefts: list[int], chunk: int) -> None:
    """Steps until all prompts are evaluated: each step within its budget, each turn served, no step in vain."""
    budget = Budget(64, chunk)
    left = {100 + index: tokens for index, tokens in enumerate(lefts)}
    turns = list(range(decoding))
    for _ in range(sum(lefts) + 1):
        waiting = [Prompt(turn, tokens) for turn, tokens in left.items() if tokens]
        pieces = next_pieces(turns, waiting, budget)
        assert sum(piece.count for piece in pieces) <= budget.batch
        assert [piece.turn for piece in pieces[: len(turns)]] == turns
        assert len({piece.turn for piece in pieces}) == len(pieces)
        prompts = [piece for piece in pieces if piece.turn >= 100]
        assert sum(piece.count for piece in prompts) <= (chunk if turns else budget.batch)
        assert bool(prompts) == bool(waiting)
        for piece in prompts:
            assert 1 <= piece.count <= left[piece.turn]
            assert piece.last == (piece.count == left[piece.turn])
            left[piece.turn] -= piece.count
        if not waiting:
            break
    assert not any(left.values())
