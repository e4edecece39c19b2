"""What is made aside: titles, summaries, compacted histories."""

import pytest

from serving.pins import is_session
from serving.side import FEW, MUCH, TIMES, scratch_of, side

SYSTEM = tuple(range(1, 101))
CHAT = (*SYSTEM, *range(1000, 2000))
"""What a long chat left: its prompt, and the answer."""
GENERATE = (7, 8, 9)
"""What a template puts before an answer."""
TITLE = (*range(3000, 3200), *GENERATE)
TITLED = (*TITLE, 31, 32, 33)


def test_the_next_turn_goes_on_with_the_chat() -> None:
    assert side((*CHAT, 5, 6), CHAT, ()) == "main"
    assert side((*CHAT, 5, 6), CHAT, TITLED, len(TITLE)) == "main"


def test_the_first_turn_of_all_is_the_chat() -> None:
    assert side(CHAT, (), ()) == "main"


def test_a_title_is_made_aside() -> None:
    assert side(TITLE, CHAT, ()) == "scratch"


def test_a_title_that_shares_the_system_prompt_is_made_aside() -> None:
    assert side((*SYSTEM, *TITLE), CHAT, ()) == "scratch"


def test_a_chat_that_loses_little_is_not_kept_for_a_title() -> None:
    assert side(TITLE, tuple(range(MUCH)), ()) == "main"
    assert side(TITLE, tuple(range(MUCH + 1)), ()) == "scratch"


def test_a_chat_takes_the_place_of_the_title_that_was_asked_for_before_it() -> None:
    """Else it stays on the scratch, and the next title throws it out."""
    title = tuple(range(3000, 3000 + 2 * MUCH))
    assert side(tuple(range(TIMES * len(title))), title, ()) == "main"
    assert side(tuple(range(TIMES * len(title) - 1)), title, ()) == "scratch"


def test_an_edit_in_the_second_half_goes_on_with_the_chat() -> None:
    half = len(CHAT) // 2
    assert side((*CHAT[:half], 5), CHAT, ()) == "main"
    assert side((*CHAT[: half - 1], 5), CHAT, ()) == "scratch"


def test_what_goes_on_from_the_scratchs_answer_makes_it_the_chat() -> None:
    assert side((*TITLED, 41, 42, 43), CHAT, TITLED, len(TITLE)) == "promote"


def test_an_answers_end_may_be_written_otherwise_in_a_history() -> None:
    answered = (*TITLE, *range(50, 50 + 3 * FEW))
    assert side((*answered[:-FEW], *range(70, 90)), CHAT, answered, len(TITLE)) == "promote"
    assert side((*answered[: -FEW - 1], *range(70, 90)), CHAT, answered, len(TITLE)) == "scratch"


def test_a_title_asked_for_again_does_not_become_the_chat() -> None:
    """Its prompt ends with a longer chat, and its answer was so short that little of the scratch is left out."""
    longer = (*TITLE[: -len(GENERATE)], 5, 6, *range(60, 80), *GENERATE)
    assert side(longer, CHAT, TITLED, len(TITLE)) == "scratch"
    assert side(TITLE, CHAT, TITLED, len(TITLE)) == "scratch"
    assert side(TITLE, CHAT, TITLED) == "scratch"


def test_a_title_whose_answer_was_cut_off_does_not_become_the_chat() -> None:
    assert side(TITLE, CHAT, TITLE[:-20], len(TITLE)) == "scratch"
    assert side(TITLE, CHAT, TITLE, len(TITLE)) == "scratch"


def test_after_a_restart_nobody_knows_what_the_scratch_was_asked() -> None:
    assert side((*TITLED, 41, 42, 43), CHAT, TITLED) == "promote"


def test_a_scratch_outlives_a_chat_that_was_evicted() -> None:
    assert side((*TITLED, 41, 42, 43), (), TITLED, len(TITLE)) == "promote"
    assert side(CHAT, (), TITLED, len(TITLE)) == "main"


@pytest.mark.parametrize("session", ["a" * 64, "b" * 64])
def test_a_scratch_has_a_name_like_a_sessions(session: str) -> None:
    assert is_session(scratch_of(session))
    assert scratch_of(session) == scratch_of(session) != session
    assert scratch_of("a" * 64) != scratch_of("b" * 64)
