"""What a body says of its session, from the one pass that decodes it."""

import msgspec
import pytest

from router.clues import BodyFields, body_clues
from router.identity import DEFAULT, Clues, Identity, IdentityOptions, digest, identify
from router.likeness import Message


class Wanted(BodyFields, frozen=True, gc=False):
    """As a router's own decoder includes the fields."""

    model: str
    messages: msgspec.Raw


DECODER = msgspec.json.Decoder(Wanted)


def of(more: bytes = b"", messages: bytes = b"[]", options: IdentityOptions = DEFAULT) -> Identity:
    wanted = DECODER.decode(b'{"model":"m","messages":%s%s}' % (messages, more))
    assert wanted.model == "m"
    return identify(Clues(body=body_clues(wanted, wanted.messages)), options=options)


@pytest.mark.parametrize(
    "more",
    [
        b',"prompt_cache_key":"tea"',
        b',"conversation":"tea"',
        b',"conversation":{"id":"tea"}',
        b',"metadata":{"session_id":"tea","n":1}',
        b',"metadata":{"user_id":"{\\"session_id\\":\\"tea\\"}"}',
        b',"session_id":"tea"',
    ],
)
def test_each_field_is_taken_from_the_decoded_body(more: bytes) -> None:
    assert of(more) == Identity("body", digest("local", "", "tea"))


@pytest.mark.parametrize("field", ["user", "safety_identifier"])
def test_a_person_is_taken_along_for_a_config_that_wants_it(field: str) -> None:
    more = b',"%s":"tea"' % field.encode()
    assert of(more).session is None
    assert of(more, options=IdentityOptions(fields=(field,))).session == digest("local", "", "tea")


@pytest.mark.parametrize(
    "value",
    [
        b"null",
        b"7",
        b'["a"]',
        b'{"a":[{}]}',
        b"true",
        b'""',
        b"1e400",
        b'{"session_id":1e400}',
        b"1" * 5000,
        b'{"a":' * 300 + b"1" + b"}" * 300,
    ],
)
@pytest.mark.parametrize("field", BodyFields.__struct_fields__)
def test_a_field_of_any_type_fails_no_request(field: str, value: bytes) -> None:
    assert of(b',"%s":%s' % (field.encode(), value)).source == "none"


@pytest.mark.parametrize("more", [b"1e400", b"[{}]", b"1" * 5000])
def test_what_stands_beside_a_name_in_the_metadata_does_not_matter(more: bytes) -> None:
    expected = digest("local", "", "tea") if len(more) < 5000 else None
    assert of(b',"metadata":{"session_id":"tea","n":%s}' % more).session == expected


def test_messages_are_read_where_nothing_names_the_session() -> None:
    body = b'[{"role":"user","content":"hello","name":"ann","x":[1]}]'
    assert (
        of(messages=body).history == of(messages=b'[{"content":"hello","role":"user"}]').history is not None
    )
    wanted = DECODER.decode(b'{"model":"m","messages":%s}' % body)
    assert body_clues(wanted, wanted.messages).messages() == [Message("user", "hello")]


@pytest.mark.parametrize(
    "messages", [b"null", b"7", b'"hello"', b'["hello"]', b'{"role":"user"}', b"[[]]", b"[null]"]
)
def test_what_are_no_messages_say_nothing(messages: bytes) -> None:
    assert of(messages=messages).source == "none"


def test_a_body_without_messages_says_nothing() -> None:
    assert body_clues(BodyFields()).messages() == ()
