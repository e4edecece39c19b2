"""What of a sequence can serve the next prompt: where other tokens stand for the same text."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.prefixes import common_prefix, spelled_as

LETTERS = "abé"
TEXTS = (*LETTERS, *(a + b for a in LETTERS for b in LETTERS), "abéab")
PIECES: tuple[bytes, ...] = (b"\xc3", b"\xa9", *(text.encode() for text in TEXTS))
"""By token; the halves of a letter are tokens too."""
SPECIAL = len(PIECES)
END = SPECIAL + 1


def piece(token: int) -> bytes | None:
    if token == END:
        return None
    return b"" if token == SPECIAL else PIECES[token]


def spell(text: str) -> tuple[int, ...]:
    return ids(*text)


def ids(*texts: str) -> tuple[int, ...]:
    special = {"<s>": SPECIAL, "<e>": END}
    return tuple(special.get(text) or PIECES.index(text.encode()) for text in texts)


def text_of(tokens: Sequence[int]) -> list[bytes]:
    """The text between special tokens, and those."""
    found = [b""]
    for token in tokens:
        if part := piece(token):
            found[-1] += part
        else:
            found += [b"%d" % token, b""]
    return found


@pytest.mark.parametrize(
    ("held", "prompt", "expected"),
    [
        (ids(), ids("a"), ids("a")),
        (ids("a", "b"), ids("a", "b", "a"), ids("a", "b", "a")),
        (ids("<s>", "a", "b"), ids("<s>", "ab", "<e>", "a"), ids("<s>", "a", "b", "<e>", "a")),
        (ids("ab", "a"), ids("a", "ba", "b"), ids("ab", "a", "b")),
        (ids("a", "b", "ab", "a"), ids("ab", "a", "ba"), ids("a", "b", "ab", "a")),
        (ids("a", "b", "<e>", "ab"), ids("ab", "<e>", "a", "b"), ids("a", "b", "<e>", "ab")),
        (ids("a", "b", "a", "a"), ids("ab", "ab"), ids("a", "b", "ab")),
    ],
    ids=[
        "nothing-held",
        "alike",
        "an-answer-in-other-tokens",
        "cut-across",
        "twice",
        "behind-a-special-one",
        "an-edit-behind",
    ],
)
def test_a_prompt_is_spelled_as_what_is_held(
    held: tuple[int, ...], prompt: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert spelled_as(held, prompt, piece, spell) == expected


def test_where_a_text_ends_what_is_not_held_of_its_last_token_is_spelled_alone() -> None:
    held = ids("<s>", "b", "a")
    assert spelled_as(held, ids("<s>", "b", "ab", "<e>", "a"), piece, spell) == (*held, *ids("b", "<e>", "a"))
    assert spelled_as(held, ids("<s>", "b", "ab", "a"), piece, spell) == ids("<s>", "b", "ab", "a")
    assert spelled_as(held, ids("<s>", "b", "ab"), piece, spell) == ids("<s>", "b", "ab")


def test_half_a_character_is_not_spelled() -> None:
    half = PIECES.index(b"\xc3")
    prompt = ids("é", "<e>")
    assert spelled_as((half,), prompt, piece, spell) == prompt


def test_a_special_token_is_like_itself_only() -> None:
    assert spelled_as(ids("a", "<s>"), ids("a", "<e>", "b"), piece, spell) == ids("a", "<e>", "b")
    assert spelled_as(ids("<s>", "a"), ids("a", "a"), piece, spell) == ids("a", "a")


TOKENS = st.lists(st.integers(0, END), max_size=12).map(tuple)


@st.composite
def spelled_twice(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """One text in two ways."""
    texts = draw(st.lists(st.sampled_from(TEXTS), max_size=6))

    def spell(text: str) -> tuple[int, ...]:
        return (
            ids(text) if draw(st.booleans()) else tuple(PIECES.index(b"%c" % byte) for byte in text.encode())
        )

    first, second = (tuple(token for text in texts for token in spell(text)) for _ in range(2))
    return first, second


@given(spelled_twice(), TOKENS, TOKENS)
def test_the_text_stays_and_no_token_that_is_held_is_lost(
    ways: tuple[tuple[int, ...], tuple[int, ...]], behind: tuple[int, ...], new: tuple[int, ...]
) -> None:
    held, prompt = (*ways[0], *behind), (*ways[1], *new)
    spelled = spelled_as(held, prompt, piece, spell)
    assert text_of(spelled) == text_of(prompt)
    assert common_prefix(held, spelled) >= common_prefix(held, prompt)
    assert spelled_as(held, spelled, piece, spell) == spelled


@given(spelled_twice(), TOKENS)
def test_a_text_that_comes_back_is_held_whole(
    ways: tuple[tuple[int, ...], tuple[int, ...]], new: tuple[int, ...]
) -> None:
    held, prompt = ways
    assert spelled_as(held, (*prompt, SPECIAL, *new), piece, spell) == (*held, SPECIAL, *new)
