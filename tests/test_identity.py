"""Which session a request names."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router.identity import (
    NOBODY,
    SESSION_HEADERS,
    BadName,
    BodyClues,
    Clues,
    Identity,
    IdentityOptions,
    digest,
    guessed_session,
    identify,
    key_scope,
    naming_headers,
    public_id,
    scope_of,
)
from router.likeness import VOLATILE, Message

TEA = digest("local", "", "tea")
PUBLIC = "hp_0123456789abcdef01234567"
CONVERSATION = "3f1c9a52-6d0e-4a0b-9b1e-5f0c8f0a7d11"
AGENT = (b"x-claude-code-agent-id", b"explore-1")

Names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40).filter(
    lambda name: not re.fullmatch("hp_[0-9a-f]{24}", name)
)


def with_headers(*headers: tuple[bytes, bytes]) -> Identity:
    return identify(Clues(headers))


def with_body(**fields: object) -> Identity:
    return identify(Clues(body=BodyClues(**fields)))  # type: ignore[arg-type]


def says(*messages: Message) -> BodyClues:
    return BodyClues(messages=lambda: messages)


HELLO = says(Message("user", "hello"))


def test_a_request_without_a_name_has_no_session() -> None:
    assert with_headers((b"content-type", b"application/json")) == NOBODY


@pytest.mark.parametrize("header", SESSION_HEADERS)
def test_every_header_of_the_ladder_names_the_same_session(header: bytes) -> None:
    identity = with_headers((header, b"tea"))
    assert (identity.session, identity.source) == (TEA, "header")
    assert identity.parent is None


def test_the_ladder_goes_path_headers_configured_headers_body_configured_fields_guess() -> None:
    """Each rung of a request that has them all decides once those above it are gone."""
    options = IdentityOptions(headers=("X-My-Chat",), fields=("safety_identifier", "user"))
    rungs = ["path", *(header.decode() for header in SESSION_HEADERS), "x-my-chat"]
    clues = Clues(
        [(name.encode(), name.encode()) for name in reversed(rungs[1:])],
        path_session="path",
        body=BodyClues(
            prompt_cache_key="prompt_cache_key",
            conversation={"id": "conversation"},
            metadata={"session_id": "metadata", "user_id": f'{{"session_id":"{CONVERSATION}"}}'},
            session_id="session_id in the body",
            others={"user": "user", "safety_identifier": "safety_identifier"},
            messages=HELLO.messages,
        ),
    )
    order: list[tuple[str, str]] = []
    for name in rungs:
        order.append(("path" if name == "path" else "header", name))
        assert identify(clues, options=options).session == digest("local", "", name), name
        headers = [(header, value) for header, value in clues.headers if header != name.encode()]
        clues = replace(clues, path_session=None, headers=headers)
    body = clues.body
    for name, without in (
        ("prompt_cache_key", {"prompt_cache_key": None}),
        ("conversation", {"conversation": None}),
        ("metadata", {"metadata": {"user_id": f'{{"session_id":"{CONVERSATION}"}}'}}),
        (CONVERSATION, {"metadata": None}),
        ("session_id in the body", {"session_id": None}),
        ("safety_identifier", {"others": {"user": "user"}}),
        ("user", {"others": {}}),
    ):
        identity = identify(replace(clues, body=body), options=options)
        assert (identity.session, identity.source) == (digest("local", "", name), "body"), name
        body = replace(body, **without)
    assert identify(replace(clues, body=body), options=options).source == "guess"


def test_the_messages_of_a_request_that_is_named_are_never_read() -> None:
    def unread() -> Sequence[Message]:
        raise AssertionError

    assert identify(Clues([(b"x-session-id", b"tea")], body=BodyClues(messages=unread))).session == TEA


def test_a_header_sent_twice_with_the_same_value_is_one_name() -> None:
    assert with_headers((b"x-session-id", b"tea"), (b"x-session-id", b"tea")).session == TEA


@pytest.mark.parametrize("header", ["x-session-id", "thread-id", "x-homeport-parent"])
def test_a_header_sent_twice_with_different_values_is_refused(header: str) -> None:
    with pytest.raises(BadName, match="twice") as refused:
        with_headers((header.encode(), b"tea"), (header.encode(), b"coffee"))
    assert refused.value.where == refused.value.header == header
    assert refused.value.code == "invalid_session_name"


BAD = [b"a" * 513, b"two\nlines", b"bell\x07", b"\xff\xfe", "zero\u200bwidth".encode()]


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("header", [*SESSION_HEADERS, b"x-homeport-parent", b"x-parent-session-id"])
def test_a_name_that_is_not_1_to_512_printable_characters_is_refused(header: bytes, name: bytes) -> None:
    with pytest.raises(BadName, match="1 to 512 printable") as refused:
        with_headers((header, name))
    assert refused.value.where == header.decode()
    assert refused.value.where in str(refused.value)


@pytest.mark.parametrize("name", ["", "a" * 513, "two\nlines"])
def test_a_bad_name_in_the_path_is_refused(name: str) -> None:
    with pytest.raises(BadName, match="1 to 512 printable") as refused:
        identify(Clues(path_session=name))
    assert refused.value.where == "path"


@pytest.mark.parametrize("field", ["prompt_cache_key", "conversation", "session_id"])
def test_a_bad_name_in_a_field_of_the_body_is_refused(field: str) -> None:
    with pytest.raises(BadName, match=f"`{field}` must be 1 to 512 printable") as refused:
        with_body(**{field: "a" * 513})
    assert refused.value.where == field


@pytest.mark.parametrize("name", ["a", "a" * 512, "ü" * 512, "with spaces and emoji \N{HOT BEVERAGE}"])
def test_a_printable_name_is_taken(name: str) -> None:
    assert with_headers((b"x-session-id", name.encode())).session == digest("local", "", name)
    assert identify(Clues(path_session=name)).session == digest("local", "", name)


@pytest.mark.parametrize("header", [b"x-homeport-session", b"x-session-id", b"x-homeport-parent"])
def test_homeports_own_headers_and_the_plainest_one_may_not_be_empty(header: bytes) -> None:
    with pytest.raises(BadName, match="1 to 512 printable"):
        with_headers((header, b""))


def test_an_empty_header_of_a_clients_template_names_nothing() -> None:
    assert with_headers((b"x-openwebui-chat-id", b""), (b"x-conversation-id", b"tea")).session == TEA
    assert with_headers((b"x-openwebui-chat-id", b""), (b"x-parent-session-id", b"")) == NOBODY


# --- public ids


@pytest.mark.parametrize(
    "clues",
    [
        Clues([(b"x-homeport-session", PUBLIC.encode())]),
        Clues([(b"x-session-id", PUBLIC.encode())]),
        Clues(path_session=PUBLIC),
        Clues(body=BodyClues(prompt_cache_key=PUBLIC)),
    ],
)
def test_a_public_id_sent_back_is_to_be_looked_up(clues: Clues) -> None:
    identity = identify(clues)
    assert (identity.session, identity.public) == (None, PUBLIC)
    assert identity.source in {"header", "path", "body"}


@pytest.mark.parametrize("name", ["hp_tea", PUBLIC[:-1], f"{PUBLIC}0", PUBLIC.upper()])
def test_a_name_that_only_looks_like_a_public_id_is_a_name(name: str) -> None:
    assert with_headers((b"x-homeport-session", name.encode())).session == digest("local", "", name)


# --- what scopes a session


def test_another_api_key_machine_or_zone_makes_another_session() -> None:
    named = Clues([(b"x-session-id", b"tea")])
    sessions = {
        identify(replace(named, path_machine=machine, zone=zone), key).session
        for key in ("local", "anna")
        for machine in (None, "den", "attic")
        for zone in (None, "den", "home")
    }
    assert len(sessions) == 18


def test_a_machine_is_the_same_in_the_path_in_the_model_and_in_both() -> None:
    named = Clues([(b"x-session-id", b"tea")])
    path, model = replace(named, path_machine="den"), replace(named, model_machine="den")
    assert identify(path) == identify(model) == identify(replace(path, model_machine="den"))
    assert identify(path).machine == "den"


def test_two_machines_in_one_request_are_refused() -> None:
    with pytest.raises(BadName, match=r"'den'.*'attic'") as refused:
        identify(Clues(path_machine="den", model_machine="attic"))
    assert (refused.value.where, refused.value.code) == ("model", "machine_conflict")


def test_a_request_of_nobody_keeps_the_machine_and_zone_that_it_names() -> None:
    identity = identify(Clues(path_machine="den", zone="home"))
    assert identity == Identity("none", machine="den", zone="home")


Places = st.tuples(st.none() | st.text(), st.none() | st.text())


@given(Places, Places)
def test_different_machines_and_zones_never_share_a_scope(
    a: tuple[str | None, str | None], b: tuple[str | None, str | None]
) -> None:
    assert (scope_of(*a) == scope_of(*b)) == (a == b)


@given(Names, st.text(max_size=8), Places)
def test_a_name_is_one_session_wherever_it_stands(
    name: str, key: str, place: tuple[str | None, str | None]
) -> None:
    scoped = Clues(path_machine=place[0], zone=place[1])
    ways = [
        replace(scoped, path_session=name),
        replace(scoped, headers=[(b"x-homeport-session", name.encode())]),
        replace(scoped, body=BodyClues(conversation=name)),
        replace(scoped, body=BodyClues(metadata={"user_id": json.dumps({"session_id": name})})),
    ]
    assert {identify(clues, key).session for clues in ways} == {digest(key, scope_of(*place), name)}


# --- the body


@pytest.mark.parametrize("other", [None, "", 7, True, ["tea"], {"name": "tea"}, {"id": 7}, {"id": None}])
@pytest.mark.parametrize("field", ["prompt_cache_key", "conversation", "metadata", "session_id"])
def test_a_field_that_holds_something_else_names_nothing(field: str, other: object) -> None:
    assert with_body(**{field: other}) == NOBODY


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
Metadata = Json | st.fixed_dictionaries({}, optional={"session_id": Json, "user_id": Json})


@given(Metadata)
def test_metadata_of_any_shape_fails_no_request(metadata: object) -> None:
    assert with_body(metadata=metadata).source in {"body", "none"}


@pytest.mark.parametrize(
    "user_id",
    [
        f'{{"device_id":"d","account_uuid":"","session_id":"{CONVERSATION}"}}',
        f"user_{'a1' * 32}_account__session_{CONVERSATION}",
        f"user_{'a1' * 32}_account_{CONVERSATION[::-1]}_session_{CONVERSATION}",
    ],
)
def test_claude_codes_user_id_names_the_conversation_that_its_header_names(user_id: str) -> None:
    by_header = with_headers((b"x-claude-code-session-id", CONVERSATION.encode()))
    assert with_body(metadata={"user_id": user_id}).session == by_header.session


@pytest.mark.parametrize(
    "user_id",
    ["anna", "user_anna", "user_anna_session_one", "{", "{}", "[1]", '{"session_id":7}', "{" * 9999],
)
def test_a_user_id_that_is_a_person_names_nothing(user_id: str) -> None:
    assert with_body(metadata={"user_id": user_id}) == NOBODY


@pytest.mark.parametrize("field", ["user", "safety_identifier"])
def test_a_person_is_no_session_unless_the_config_says_so(field: str) -> None:
    assert with_body(others={field: "anna"}) == NOBODY
    clues = Clues(body=BodyClues(others={field: "anna"}))
    configured = identify(clues, options=IdentityOptions(fields=(field,)))
    assert configured.session == digest("local", "", "anna")


def test_a_header_of_the_config_counts_in_any_case_and_after_the_known_ones() -> None:
    options = IdentityOptions(headers=("X-My-Chat",))
    assert identify(Clues([(b"x-my-chat", b"tea")]), options=options).session == TEA
    assert identify(Clues([(b"x-my-chat", b"tea")])) == NOBODY
    both = Clues([(b"x-my-chat", b"coffee"), (b"x-litellm-trace-id", b"tea")])
    assert identify(both, options=options).session == TEA


def test_naming_headers_are_all_that_identify_reads() -> None:
    names = naming_headers(IdentityOptions(headers=("X-My-Chat",)))
    assert names >= set(SESSION_HEADERS)
    assert names >= {b"x-my-chat", b"x-homeport-parent", b"x-parent-session-id", b"x-claude-code-agent-id"}
    assert all(name == name.lower() for name in names)


# --- families


def test_an_agent_of_claude_code_is_a_session_of_its_own_and_a_child_of_the_conversation() -> None:
    main = with_headers((b"x-claude-code-session-id", b"tea"))
    child = with_headers((b"x-claude-code-session-id", b"tea"), AGENT)
    assert main.session == child.parent == TEA
    assert child.session not in {None, TEA}
    assert child.session != with_headers((b"x-claude-code-session-id", b"tea"), (AGENT[0], b"plan")).session


def test_an_agent_of_an_older_claude_code_is_found_by_the_body() -> None:
    metadata = {"user_id": f'{{"session_id":"{CONVERSATION}"}}'}
    by_body = identify(Clues([AGENT], body=BodyClues(metadata=metadata)))
    by_header = with_headers((b"x-claude-code-session-id", CONVERSATION.encode()), AGENT)
    assert (by_body.session, by_body.parent) == (by_header.session, by_header.parent)


def test_an_agent_counts_only_beside_the_name_that_claude_code_gives() -> None:
    assert with_headers((b"x-session-id", b"tea"), AGENT) == with_headers((b"x-session-id", b"tea"))
    assert with_headers(AGENT) == NOBODY


@pytest.mark.parametrize("header", [b"x-homeport-parent", b"x-parent-session-id"])
def test_a_parent_is_named_as_its_own_turns_name_it(header: bytes) -> None:
    child = with_headers((b"x-session-id", b"leaves"), (header, b"tea"))
    assert (child.session, child.parent) == (digest("local", "", "leaves"), TEA)
    elsewhere = identify(Clues([(b"x-session-id", b"leaves"), (header, b"tea")], path_machine="den"), "anna")
    assert elsewhere.parent == digest("anna", scope_of("den", None), "tea")


def test_homeports_own_parent_comes_before_the_clients() -> None:
    headers = [(b"x-parent-session-id", b"coffee"), (b"x-homeport-parent", b"tea"), (b"x-session-id", b"x")]
    assert with_headers(*headers).parent == TEA
    agent = (b"x-claude-code-session-id", b"coffee")
    assert with_headers(agent, AGENT, (b"x-homeport-parent", b"tea")).parent == TEA


def test_a_parent_may_be_a_public_id() -> None:
    child = with_headers((b"x-session-id", b"leaves"), (b"x-homeport-parent", PUBLIC.encode()))
    assert (child.parent, child.parent_public) == (None, PUBLIC)


@pytest.mark.parametrize("name", [b"tea", PUBLIC.encode()])
def test_nobody_is_its_own_parent(name: bytes) -> None:
    child = with_headers((b"x-session-id", name), (b"x-parent-session-id", name))
    assert (child.parent, child.parent_public) == (None, None)


def test_a_child_without_a_name_has_a_parent_too() -> None:
    guess = identify(Clues([(b"x-homeport-parent", b"tea")], body=HELLO))
    assert (guess.source, guess.parent) == ("guess", TEA)


# --- the guess


def test_a_chat_without_a_name_is_a_guess_by_what_it_says() -> None:
    identity = identify(Clues(body=HELLO))
    assert (identity.source, identity.session, identity.public, identity.continues) == (
        "guess",
        None,
        None,
        (),
    )
    assert re.fullmatch("[0-9a-f]{64}", identity.history or "")


def test_the_next_turn_of_a_guess_continues_the_last() -> None:
    first = Message("user", "hello")
    then = says(first, Message("assistant", "good day"), Message("user", "and?"))
    assert identify(Clues(body=then)).continues == (identify(Clues(body=says(first))).history,)


@pytest.mark.parametrize(
    "messages", [(), (Message("system", "be kind"),), (Message("developer", "be kind"),)]
)
def test_a_chat_in_which_nobody_has_spoken_is_nobodys(messages: tuple[Message, ...]) -> None:
    assert identify(Clues(body=says(*messages))) == NOBODY


def test_the_same_words_of_another_key_machine_or_zone_are_another_history() -> None:
    histories = {
        identify(Clues(body=HELLO, path_machine=machine, zone=zone), key).history
        for key in ("local", "anna")
        for machine in (None, "den")
        for zone in (None, "home")
    }
    assert len(histories) == 8


@given(st.text(), st.text(), Names)
def test_a_guessed_session_is_no_named_one(key: str, nonce: str, name: str) -> None:
    guessed = guessed_session(key, "", nonce)
    assert re.fullmatch("[0-9a-f]{64}", guessed)
    assert guessed != digest(key, "", name)
    assert guessed != guessed_session(key, "", nonce + "!")
    assert guessed != guessed_session(key, scope_of("den", None), nonce)


# --- digests


Parts = st.tuples(st.text(), st.text(), st.text())


@given(Parts, Parts)
def test_different_parts_never_share_a_digest(a: tuple[str, str, str], b: tuple[str, str, str]) -> None:
    assert (digest(*a) == digest(*b)) == (a == b)


@given(st.text(max_size=4), st.text(max_size=4), st.text(max_size=4))
def test_moving_a_character_between_parts_changes_the_digest(key: str, scope: str, name: str) -> None:
    assert digest(key + "x", scope, name) != digest(key, "x" + scope, name)


@given(st.binary(min_size=1, max_size=64), st.text())
def test_a_public_id_is_steady_and_tells_nothing_of_the_name(key: bytes, name: str) -> None:
    session = digest("local", "", name)
    public = public_id(key, session)
    assert public == public_id(key, session)
    assert public.startswith("hp_")
    assert len(public) == 27
    assert public[3:] not in session
    assert public != public_id(key + b"!", session)


def test_a_keys_scope_is_a_digest_of_its_name_and_no_sessions() -> None:
    assert key_scope("local") == key_scope()
    assert len({key_scope("local"), key_scope("ann"), digest("local", "", "x")}) == 3
    assert re.fullmatch("[0-9a-f]{64}", key_scope())


# --- docs/clients.md


def test_the_page_on_clients_has_the_ladder_in_its_order() -> None:
    page = (Path(__file__).parent.parent / "docs" / "clients.md").read_text()
    ladder = page.partition("## The ladder")[2].partition("## Clients")[0]
    rows = [line.split(" | ")[1] for line in ladder.splitlines() if re.match(r"\| \d+ \|", line)]
    names = [name for row in rows if "router." not in row for name in re.findall("`([^`]+)`", row)]
    headers = [name for name in names if name.encode() in SESSION_HEADERS]
    assert [name.encode() for name in headers[: len(SESSION_HEADERS)]] == list(SESSION_HEADERS)
    assert names[len(SESSION_HEADERS) + 1] == "prompt_cache_key"


def test_the_page_on_clients_tells_of_everything_that_is_left_out() -> None:
    page = (Path(__file__).parent.parent / "docs" / "clients.md").read_text()
    for volatile in VOLATILE:
        client, _, variable = volatile.client.partition(", ")
        assert client in page
        assert variable in page
