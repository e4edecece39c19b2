"""Which conversation a nameless chat continues."""

import json
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.likeness import MOST_CONTINUED, VOLATILE, Message, Volatile, history, steady

SEED = bytes(32)


def whole(*messages: Message) -> str:
    said = history(messages, SEED)
    assert said is not None
    return said.whole


def continued(*messages: Message) -> tuple[str, ...]:
    said = history(messages, SEED)
    assert said is not None
    return said.continues


def calls(name: object, arguments: object, call_id: str = "call_1") -> list[dict[str, Any]]:
    return [{"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}]


SYSTEM = Message("system", "be kind")
HELLO = Message("user", "hello")
ANSWER = Message("assistant", "good day")
AND = Message("user", "and?")


# --- the chain


def test_a_turn_continues_what_was_said_before_each_answer_longest_first() -> None:
    second = (SYSTEM, HELLO, ANSWER, AND)
    third = (*second, Message("assistant", "well"), Message("user", "so?"))
    assert continued(SYSTEM, HELLO) == ()
    assert continued(*second) == (whole(SYSTEM, HELLO),)
    assert continued(*third) == (whole(*second), whole(SYSTEM, HELLO))


def test_a_tools_answer_continues_the_request_that_called_it() -> None:
    called = Message("assistant", None, calls("look", "{}"))
    assert continued(SYSTEM, HELLO, called, Message("tool", "nothing"))[0] == whole(SYSTEM, HELLO)


def test_the_newest_answers_alone_are_offered() -> None:
    messages = [HELLO]
    for number in range(40):
        messages += [Message("assistant", f"answer {number}"), Message("user", f"question {number}")]
    offered = continued(*messages)
    assert len(offered) == MOST_CONTINUED
    assert offered[0] == whole(*messages[:-2])
    assert offered[-1] == whole(*messages[: -2 * MOST_CONTINUED])


def test_conversations_with_one_opening_part_where_they_differ() -> None:
    ours, theirs = (HELLO, ANSWER, AND), (HELLO, Message("assistant", "hi"), AND)
    assert continued(*ours) == continued(*theirs) == (whole(HELLO),)
    assert whole(*ours) != whole(*theirs)
    assert continued(*ours, ANSWER, AND)[0] != continued(*theirs, ANSWER, AND)[0]


@pytest.mark.parametrize("messages", [(), (SYSTEM,), (SYSTEM, Message("developer", "and brief"))])
def test_where_nobody_has_spoken_there_is_no_history(messages: tuple[Message, ...]) -> None:
    assert history(messages, SEED) is None


@pytest.mark.parametrize("role", [None, 7, ["user"], {}])
def test_what_is_no_message_makes_no_history(role: object) -> None:
    assert history((HELLO, Message(role, "x")), SEED) is None


Texts = st.text(max_size=20)
Roles = st.sampled_from(["system", "user", "assistant", "tool"])
Talk = st.lists(st.builds(Message, Roles, Texts), min_size=1, max_size=6)


def normal(talk: list[Message]) -> list[tuple[Any, Any]]:
    return [(message.role, message.content.strip()) for message in talk]


@given(Talk, Talk)
def test_two_histories_that_differ_never_share_a_digest(a: list[Message], b: list[Message]) -> None:
    if (one := history(a, SEED)) is not None and (other := history(b, SEED)) is not None:
        assert (one.whole == other.whole) == (normal(a) == normal(b))


@given(Talk)
def test_no_part_of_a_talk_has_the_digest_of_another(talk: list[Message]) -> None:
    talk = [HELLO, *talk]
    digests = [whole(*talk[:end]) for end in range(1, len(talk) + 1)]
    assert len(set(digests)) == len(digests)


@given(Talk, st.binary(min_size=32, max_size=32))
def test_another_seed_is_another_history(talk: list[Message], seed: bytes) -> None:
    one, other = history(talk, SEED), history(talk, seed)
    assert one is None or other is None or (one.whole == other.whole) == (seed == SEED)


@given(Texts, Texts, Texts, Texts)
def test_moving_words_between_messages_or_calls_changes_the_digest(a: str, b: str, c: str, d: str) -> None:
    talks = {
        (Message("user", a), Message("user", b + "x")),
        (Message("user", a + "x"), Message("user", b)),
        (Message("user", f"{a}x{b}y"),),
    }
    if len({tuple(map(str, normal(list(talk)))) for talk in talks}) == 3:
        assert len({whole(*talk) for talk in talks}) == 3
    assert whole(Message("assistant", c + "x", calls(d, "{}"))) != whole(
        Message("assistant", c, calls("x" + d, "{}"))
    )


# --- the same message in other words of JSON


def test_a_text_is_the_same_as_a_string_in_parts_and_with_space_around_it() -> None:
    ways: list[object] = [
        "good day",
        " good day\n",
        [{"type": "text", "text": "good day"}],
        [
            {"type": "text", "text": "good "},
            {"type": "text", "text": "day", "cache_control": {"type": "ephemeral"}},
        ],
        [{"type": "input_text", "text": "good day"}],
        ["good day"],
    ]
    assert len({whole(Message("user", content)) for content in ways}) == 1


def test_a_picture_counts_and_the_marks_of_a_cache_do_not() -> None:
    def shows(url: str, **more: object) -> str:
        part = {"type": "image_url", "image_url": {"url": url}, **more}
        return whole(Message("user", [{"type": "text", "text": "see"}, part]))

    assert shows("data:a") == shows("data:a", cache_control={"type": "ephemeral"})
    assert len({shows("data:a"), shows("data:b"), whole(Message("user", "see"))}) == 3


def test_nothing_said_is_the_same_as_null_as_empty_and_as_no_parts() -> None:
    ways: list[object] = [None, "", [], "  ", [{"type": "text", "text": ""}]]
    assert len({whole(HELLO, Message("assistant", content, calls("look", "{}"))) for content in ways}) == 1


def test_a_calls_arguments_count_by_their_values_and_its_id_not_at_all() -> None:
    ways = [
        calls("look", '{"at": 1, "in": [2]}'),
        calls("look", '{"in":[2],"at":1}', "call_2"),
        calls("look", {"at": 1, "in": [2]}),
    ]
    assert len({whole(HELLO, Message("assistant", None, way)) for way in ways}) == 1


def test_other_calls_are_another_history() -> None:
    ways = [
        calls("look", '{"at": 1}'),
        calls("look", '{"at": 2}'),
        calls("look", '{"at": "1"}'),
        calls("look", '{"at": 1'),
        calls("see", '{"at": 1}'),
        calls("look", '{"at": 1}') * 2,
        [],
    ]
    digests = [whole(HELLO, Message("assistant", None, way)) for way in ways]
    assert len(set(digests)) == len(ways)


def test_an_old_function_call_is_a_call() -> None:
    function = {"name": "look", "arguments": "{}"}
    assert whole(Message("assistant", function_call=function)) == whole(
        Message("assistant", tool_calls=calls("look", "{}"))
    )


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.builds(Message, Json | st.just("user"), Json, Json, Json), max_size=4))
def test_messages_of_any_shape_are_read_or_left_and_never_fail(messages: list[Message]) -> None:
    first, again = history(messages, SEED), history(messages, SEED)
    assert first == again


@given(st.lists(Json, max_size=3), st.lists(Json, max_size=3))
def test_different_parts_never_share_a_digest(a: list[Any], b: list[Any]) -> None:
    def parts(values: list[Any]) -> list[dict[str, Any]]:
        return [{"type": "data", "value": value} for value in values]

    same = whole(Message("user", parts(a))) == whole(Message("user", parts(b)))
    if "cache_control" not in repr((a, b)):
        assert same == (repr_sorted(a) == repr_sorted(b))


def repr_sorted(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def test_what_is_nested_too_deeply_makes_no_history() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert history((Message("user", [{"type": "data", "value": deep}]),), SEED) is None


def test_halves_of_a_character_are_hashed_like_any_other() -> None:
    assert whole(Message("user", "\ud83d")) != whole(Message("user", "\ud83e"))


# --- what clients change at every call


def put(volatile: Volatile, text: str) -> list[Message]:
    """A talk in which `text` stands where that client puts it."""
    where = "system" if volatile.place == "system" else "user"
    return [Message(where, f"You help.\n{text}\nGo on."), HELLO]


@pytest.mark.parametrize("volatile", VOLATILE, ids=lambda volatile: f"{volatile.client}, {volatile.place}")
def test_each_captured_example_is_taken_out_whole(volatile: Volatile) -> None:
    assert volatile.pattern.fullmatch(volatile.example)
    role = "user" if volatile.place == "user" else "system"
    assert steady(volatile.example, role) == ""


def changed(example: str, digits: str) -> str:
    """The same with other digits, as the next call has them; ISO 8601 keeps its name."""
    taken = iter(digits * len(example))
    parts = example.split("8601")
    return "8601".join("".join(next(taken) if at.isdigit() else at for at in part) for part in parts)


@pytest.mark.parametrize("volatile", VOLATILE, ids=lambda volatile: f"{volatile.client}, {volatile.place}")
@given(digits=st.text("0123456789", min_size=1, max_size=8))
def test_volatile_parts_never_change_the_digest(volatile: Volatile, digits: str) -> None:
    now, then = put(volatile, volatile.example), put(volatile, changed(volatile.example, digits))
    assert whole(*now) == whole(*then)


@pytest.mark.parametrize("volatile", VOLATILE, ids=lambda volatile: f"{volatile.client}, {volatile.place}")
def test_what_stands_around_a_volatile_part_still_counts(volatile: Volatile) -> None:
    now, other = put(volatile, volatile.example), put(volatile, volatile.example)
    other[0] = Message(other[0].role, f"{other[0].content} Be brief.")
    assert whole(*now) != whole(*other)


def test_a_claude_code_that_stops_sending_its_line_goes_on_with_its_history() -> None:
    line = VOLATILE[0].example
    blocks = [{"type": "text", "text": f"{line}\n"}, {"type": "text", "text": "You are Claude Code."}]
    assert whole(Message("system", blocks), HELLO) == whole(Message("system", "You are Claude Code."), HELLO)


def test_the_time_that_roo_code_puts_into_the_first_message_counts_only_later() -> None:
    def at(minute: int) -> Message:
        time = f"# Current Time\nCurrent time in ISO 8601 UTC format: 2026-05-06T09:{minute}:18.429Z"
        return Message("user", f"fix it\n{time}\nUser time zone: Europe/Berlin, UTC+2:00")

    assert whole(at(10)) == whole(at(20))
    assert whole(HELLO, ANSWER, at(10)) != whole(HELLO, ANSWER, at(20))


def test_a_note_that_goose_puts_before_the_last_message_and_keeps_out_of_the_history() -> None:
    note = Message("user", next(v.example for v in VOLATILE if v.place == "user"))
    assert whole(SYSTEM, note, HELLO) == whole(SYSTEM, HELLO)
    assert continued(SYSTEM, HELLO, ANSWER, note, AND) == (whole(SYSTEM, note, HELLO),)


def test_a_blank_message_is_one_however_blank() -> None:
    assert whole(HELLO, Message("user", " \n")) == whole(HELLO, Message("user", "")) != whole(HELLO)


def test_a_user_who_writes_a_time_means_it() -> None:
    times = [Message("user", f"wake me at 2026-05-06 0{hour}:00:00") for hour in range(6, 9)]
    for one, other in combinations(times, 2):
        assert whole(one) != whole(other)
        assert whole(HELLO, ANSWER, one) != whole(HELLO, ANSWER, other)


def test_an_answer_that_tells_the_time_counts_as_it_is() -> None:
    assert whole(HELLO, Message("assistant", "it is 10:00:00")) != whole(
        HELLO, Message("assistant", "it is 10:00:01")
    )


@pytest.mark.parametrize("kind", [{}, [], None, 7])
def test_a_part_whose_type_makes_no_sense_is_read_as_it_is(kind: object) -> None:
    assert whole(Message("user", [{"type": kind, "text": "hello"}])) != whole(HELLO)
