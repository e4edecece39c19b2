"""What the Responses dialect makes of a request, and what it refuses by name."""

import base64
import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.dialects.dialect import Naming
from router.dialects.free_input import FreeInput, free_input
from router.dialects.responses import Asked, Responses
from router.errors import Rejected

NAMING = Naming("00112233445566778899aabbccddeeff", 1700000000)
PREVIOUS = "resp_0123456789abcdef01234567ffeeddccbbaa99887766554433221100"
CALL = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "seen"}
LOOK = {"type": "function", "name": "look", "parameters": None, "strict": True}
SPACE = {"type": "namespace", "name": "n", "description": "", "tools": [LOOK]}


def asked(**request: Any) -> Asked:
    return Responses().read(json.dumps({"model": "m", "input": "Hi", **request}).encode(), NAMING)


def chat(**request: Any) -> dict[str, Any]:
    """The chat that a request becomes."""
    told: dict[str, Any] = json.loads(asked(**request).body)
    return told


def messages(*items: Any) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = chat(input=list(items))["messages"]
    return told


def refused(**request: Any) -> tuple[str, str | None]:
    """Code and field of the refusal."""
    with pytest.raises(Rejected) as rejected:
        _ = asked(**request).body
    assert rejected.value.error.status == 400
    return rejected.value.error.code, rejected.value.error.param


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize(
    ("field", "value", "code", "param"),
    [
        ("background", True, "unsupported_parameter", "background"),
        ("prompt", {"id": "pmpt_1"}, "unsupported_parameter", "prompt"),
        ("context_management", [{"type": "compaction"}], "unsupported_parameter", "context_management"),
        ("thinking", {}, "unknown_parameter", "thinking"),
        ("stream_options", {"include_usage": True}, "unknown_parameter", "stream_options.include_usage"),
        ("input", None, "missing_required_parameter", "input"),
        ("input", [], "invalid_value", "input"),
        ("input", 7, "invalid_type", "input"),
        ("input", ["Hi"], "invalid_type", "input[0]"),
        ("input", [{"type": {}}], "invalid_type", "input[0].type"),
        ("input", [{"role": "tool", "content": "x"}], "invalid_value", "input[0].role"),
        ("input", [{"role": "user"}], "invalid_type", "input[0].content"),
        ("input", [{"type": "mcp_call", "id": "m"}], "unsupported_parameter", "input[0].type"),
        ("input", [{"type": "computer_call_output"}], "unsupported_parameter", "input[0].type"),
        ("input", [{**RESULT, "output": [{"type": "input_file"}]}], "unsupported_content", "input[0].output[0].type"),
        ("input", [user({"type": "input_image"})], "unsupported_content", "input[0].content[0].type"),
        ("input", [user({"type": "input_text"})], "missing_required_parameter", "input[0].content[0].text"),
        ("input", [{"type": "item_reference", "id": "msg_1"}], "item_not_found", "input[0].id"),
        ("instructions", [], "invalid_type", "instructions"),
        ("max_output_tokens", "many", "invalid_type", "max_output_tokens"),
        ("truncation", "middle", "invalid_value", "truncation"),
        ("text", {"format": {"type": "xml"}}, "invalid_value", "text.format"),
        ("text", {"format": {"type": "json_schema", "name": "x"}}, "missing_required_parameter", "text.format.schema"),
        ("tools", [{"type": "file_search"}], "unsupported_parameter", "tools[0].type"),
        ("tools", [LOOK, {"type": "code_interpreter"}], "unsupported_parameter", "tools[1].type"),
        ("tools", [{"type": "mcp", "server_label": "x"}], "unsupported_parameter", "tools[0].type"),
        ("tools", [{"type": "image_generation"}], "unsupported_parameter", "tools[0].type"),
        ("tools", [{"type": "computer_use_preview"}], "unsupported_parameter", "tools[0].type"),
        ("tools", [{"type": "shell", "environment": {"type": "container_auto"}}], "unsupported_parameter",
         "tools[0].environment"),
        ("tools", [{"type": "function"}], "missing_required_parameter", "tools[0].name"),
        ("tools", [LOOK, LOOK], "invalid_value", "tools[1].name"),
        ("tool_choice", {"type": "function", "name": "look"}, "invalid_value", "tool_choice"),
        ("tool_choice", {"type": "web_search_preview"}, "unsupported_parameter", "tool_choice.type"),
        ("tool_choice", "required", "invalid_value", "tool_choice"),
        ("tool_choice", "some", "invalid_type", "tool_choice"),
        ("previous_response_id", "resp_abc", "previous_response_not_found", "previous_response_id"),
        ("previous_response_id", PREVIOUS, "previous_response_not_found", "previous_response_id"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_by_name(field: str, value: Any, code: str, param: str) -> None:
    assert refused(**{field: value}) == (code, param)


def test_a_body_that_is_no_json_object_is_refused() -> None:
    for body, code in (
        (b"", "empty_body"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_type"),
        (b"[" * 100000, "invalid_json"),
        (b'{"model": "m", "input": "a", "metadata": ' + b"[" * 300 + b"]" * 300 + b"}", "invalid_json"),
        (b'{"model": "m", "input": "a", "temperature": NaN}', "invalid_json"),
        (b'{"model": "m", "input": [{"role": "user", "content": "a", "x": "\\ud83d"}]}', "invalid_json"),
    ):
        with pytest.raises(Rejected) as rejected:
            Responses().read(body, NAMING)
        assert rejected.value.error.code == code


def test_a_response_and_a_conversation_to_go_on_from_exclude_each_other() -> None:
    code, param = refused(previous_response_id=PREVIOUS, conversation="conv_1")
    assert (code, param) == ("mutually_exclusive_parameters", "previous_response_id")


def test_what_asks_for_nothing_or_changes_nothing_is_taken() -> None:
    plain = chat()
    assert chat(background=False, prompt=None, truncation="auto", service_tier="flex", store=False) == plain
    assert (
        chat(client_metadata={"a": "b"}, max_tool_calls=3, include=["web_search_call.action.sources"])
        == plain
    )
    assert (
        chat(
            stream_options={"include_obfuscation": False},
            tools=[{"type": "web_search"}, {"type": "tool_search"}],
        )
        == plain
    )


def test_what_names_the_session_stays_in_the_chat() -> None:
    names = {
        "metadata": {"session_id": "x"},
        "prompt_cache_key": "tea",
        "user": "ann",
        "safety_identifier": "s",
    }
    assert chat(**names).items() >= names.items()
    assert chat(conversation={"id": "conv_1"})["conversation"] == {"id": "conv_1"}


@pytest.mark.parametrize("empty", ["", {}, {"id": ""}, {"id": None}])
def test_an_empty_conversation_is_none(empty: Any) -> None:
    made = asked(conversation=empty)
    assert made.goes_on is None
    answer = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}
    assert json.loads(made.whole(json.dumps(answer).encode(), None))["conversation"] is None
    assert asked(conversation=empty, previous_response_id=PREVIOUS).goes_on is not None


def test_a_response_to_go_on_from_names_its_session_before_all_else() -> None:
    made = asked(previous_response_id=PREVIOUS, prompt_cache_key="tea").after([])
    told = json.loads(made.body)
    assert told["conversation"] == "hp_0123456789abcdef01234567"
    assert "prompt_cache_key" not in told


def test_instructions_of_turns_before_are_not_carried_over() -> None:
    made = asked(previous_response_id=PREVIOUS, instructions="Be loud.")
    record = {
        "input": [user({"type": "input_text", "text": "One"})],
        "response": {"output": [], "instructions": "Be quiet."},
    }
    assert json.loads(made.after([record]).body)["messages"] == [
        {"role": "system", "content": "Be loud."},
        {"role": "user", "content": "One"},
        {"role": "user", "content": "Hi"},
    ]  # fmt: skip


# items


def test_what_one_answer_said_is_one_message_again() -> None:
    thought = {
        "type": "reasoning",
        "id": "r",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm."}],
    }
    words = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]}
    told = messages(
        {"role": "user", "content": "Look"},
        thought,
        words,
        CALL,
        RESULT,
        words,
        {"role": "user", "content": "And?"},
    )
    assert [message["role"] for message in told] == ["user", "assistant", "tool", "assistant", "user"]
    assert told[1]["reasoning_content"] == "Hm."
    assert told[1]["content"] == "I look."
    assert told[1]["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}
    assert "tool_calls" not in told[3]


def test_two_answers_in_a_row_stay_two() -> None:
    words = {"role": "assistant", "content": "Hello"}
    assert [message["content"] for message in messages(words, words)] == ["Hello", "Hello"]


def test_reasoning_behind_words_begins_another_answer() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    first, second = messages({"role": "assistant", "content": "Hello"}, thought, CALL)
    assert first == {"role": "assistant", "content": "Hello"}
    assert second["reasoning_content"] == "Hm."
    assert "tool_calls" in second


def test_calls_without_words_are_a_message_without_content() -> None:
    (told,) = messages(CALL)
    assert told["content"] is None


@pytest.mark.parametrize(
    "item",
    [
        {"role": "developer", "content": "word " * 12},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "word " * 12}]},
    ],
)
def test_a_body_of_many_small_items_holds_up_nobody(item: dict[str, Any]) -> None:
    begun_s = time.process_time()
    (message,) = messages(*[item] * 60_000)
    assert time.process_time() - begun_s < 4
    assert len(message.get("reasoning_content") or message["content"]) >= 60_000 * 60


def test_reasoning_that_others_sealed_is_left_out() -> None:
    half = "homeport." + base64.urlsafe_b64encode(b"\xed\xa0\xbd").decode()
    for told in ("gAAAAB…", half):
        sealed = {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": told}
        assert messages(sealed, {"role": "user", "content": "Hi"}) == [{"role": "user", "content": "Hi"}]


def test_a_web_search_of_another_server_is_left_out() -> None:
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}
    assert len(messages(search, {"role": "user", "content": "Hi"})) == 1


def test_system_messages_at_the_beginning_are_one() -> None:
    told = chat(
        instructions="A",
        input=[{"role": "developer", "content": "B"}, {"role": "system", "content": "C"}, user()],
    )
    assert told["messages"][0] == {"role": "system", "content": "A\n\nB\n\nC"}
    assert len(told["messages"]) == 2


# tools


def test_only_allowed_tools_are_offered() -> None:
    other = {"type": "custom", "name": "write"}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "write"}]}
    told = chat(tools=[LOOK, other], tool_choice=choice)
    assert [tool["function"]["name"] for tool in told["tools"]] == ["write"]
    assert told["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("tool", "choice", "name"),
    [
        (LOOK, {"type": "function", "name": "look"}, "look"),
        ({"type": "custom", "name": "write"}, {"type": "custom", "name": "write"}, "write"),
        ({"type": "shell"}, {"type": "shell"}, "shell"),
        ({"type": "apply_patch"}, {"type": "apply_patch"}, "apply_patch"),
        (
            {"type": "namespace", "name": "n", "tools": [LOOK]},
            {"type": "function", "namespace": "n", "name": "look"},
            "n__look",
        ),
    ],
)
def test_a_tool_of_any_kind_can_be_chosen(tool: Any, choice: Any, name: str) -> None:
    assert chat(tools=[tool], tool_choice=choice)["tool_choice"] == {
        "type": "function",
        "function": {"name": name},
    }


def test_a_grammar_is_told_to_the_model() -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": "start: INT"}
    tool = {"type": "custom", "name": "sum", "description": "Adds.", "format": form}
    (told,) = chat(tools=[tool])["tools"]
    assert told["function"]["description"] == "Adds.\n\nThe input must match this Lark grammar:\nstart: INT"


def test_what_a_model_calls_without_being_offered_is_a_function() -> None:
    message = {"tool_calls": [{"id": "call_1", "function": {"name": "fly", "arguments": "{}"}}]}
    answer = {"model": "m", "choices": [{"message": message, "finish_reason": "tool_calls"}]}
    response = json.loads(asked().whole(json.dumps(answer).encode(), None))
    assert response["output"][0]["type"] == "function_call"


@given(text=st.text(), cuts=st.lists(st.integers(0, 400), max_size=12), ascii_only=st.booleans())
def test_a_custom_tools_text_is_read_out_of_parts_that_end_anywhere(
    text: str, cuts: list[int], ascii_only: bool
) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
    at = sorted({cut % (len(arguments) + 1) for cut in cuts} | {0, len(arguments)})
    reader = FreeInput()
    assert "".join(reader.take(arguments[one:other]) for one, other in pairwise(at)) == text
    assert free_input(arguments) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "half a li', "half a li"),
        ('{"input": "caf\\u00', "caf"),
        ('{"text": "x"}', '{"text": "x"}'),
        ("", ""),
        ('{"input": "\\ud83d"}', "\ud83d"),
    ],
)
def test_a_custom_call_that_is_cut_off_or_odd_gives_what_there_is(arguments: str, text: str) -> None:
    assert free_input(arguments) == text
