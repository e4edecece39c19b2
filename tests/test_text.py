"""serving/text.py: characters and stop strings that straddle tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.text import TextAssembler


def assemble(pieces: list[bytes], *stops: str) -> tuple[list[str], bool]:
    """What came out of each piece and of the end, and whether a stop string was met."""
    text = TextAssembler(stops)
    out = [text.push(piece) for piece in pieces]
    return [*out, text.finish()], text.stop is not None


def test_text_without_stop_strings_comes_out_at_once() -> None:
    assert assemble([b"Hello", b" world"]) == (["Hello", " world", ""], False)


@pytest.mark.parametrize("character", ["é", "€", "🏠"])
def test_a_character_in_several_tokens_waits_for_its_last_byte(character: str) -> None:
    data = character.encode()
    out, _ = assemble([bytes([byte]) for byte in data])
    assert out == [""] * (len(data) - 1) + [character, ""]


def test_a_character_that_never_ends_is_dropped() -> None:
    assert assemble([b"home ", "🏠".encode()[:3]]) == (["home ", "", ""], False)


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert assemble([b"a\xffb"]) == (["a\ufffdb", ""], False)


def test_a_stop_string_across_tokens_never_leaks() -> None:
    assert assemble([b"one\n", b"Us", b"er", b": two"], "\nUser:") == (["one", "", "", "", ""], True)


def test_the_beginning_of_a_stop_string_comes_out_once_it_is_none() -> None:
    assert assemble([b"a <", b"b> c"], "<end>") == (["a ", "<b> c", ""], False)


def test_the_beginning_of_a_stop_string_at_the_end_comes_out() -> None:
    assert assemble([b"1 <e"], "<end>") == (["1 ", "<e"], False)


def test_a_stop_string_that_begins_again_within_itself_is_found() -> None:
    assert assemble([b"a", b"a", b"a", b"b"], "aab") == (["", "", "a", "", ""], True)


def test_the_stop_string_that_is_complete_first_counts() -> None:
    assert assemble([b"xabcd"], "abcd", "c") == (["xab", ""], True)
    assert assemble([b"x", b"a", b"b", b"c", b"d"], "abcd", "c")[0][:4] == ["x", "", "", "ab"]


def test_of_two_stop_strings_with_one_end_the_longer_counts() -> None:
    assert assemble([b"x ab"], "b", "ab") == (["x ", ""], True)


def test_the_stop_string_that_counted_is_told() -> None:
    text = TextAssembler(["abcd", "c"])
    assert (text.push(b"xab"), text.stop) == ("x", None)
    assert (text.push(b"c"), text.stop) == ("ab", "c")


def test_nothing_comes_out_after_a_stop() -> None:
    text = TextAssembler(["."])
    assert text.push(b"Paris. It") == "Paris"
    assert text.push(b" is") == ""
    assert text.finish() == ""


def test_empty_stop_strings_stop_nothing() -> None:
    assert assemble([b"a", b"b"], "") == (["a", "b", ""], False)


texts = st.text(alphabet="ab.é🏠\n", max_size=30)
stop_lists = st.lists(st.text(alphabet="ab.é🏠\n", min_size=1, max_size=4), max_size=3)


@given(texts, stop_lists, st.data())
def test_the_text_does_not_depend_on_how_it_was_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=len(whole))))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    out, stopped = assemble(pieces, *stops)
    assert ("".join(out), stopped) == expected(text, stops)


@given(st.binary(max_size=20), st.data())
def test_broken_bytes_come_out_the_same_however_they_were_cut(whole: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(whole)))
    one, _ = assemble([whole])
    two, _ = assemble([whole[:cut], whole[cut:]])
    assert "".join(one) == "".join(two)


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition, character by character: the text before the first stop string to be complete."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            return text[: end - max(map(len, done))], True
    return text, False
