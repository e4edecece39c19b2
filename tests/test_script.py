"""Scripts: what is one, and what it answers when."""

from pathlib import Path
from typing import Any

import pytest

from serving.script import Script, ScriptFault, read_script
from serving.script_answers import Message, Moment, moment, play
from serving.script_file import ScriptError, load_script, script_digest

USER = Message("user", "What is the weather in Rome?")
CALLS = Message("assistant", "<tool_call>…</tool_call>")
RESULT = Message("tool", "sunny, 21 degrees", "get_weather")


def said(script: Any, *messages: Message, tools: tuple[str, ...] = ("get_weather", "read")) -> str:
    return play(read_script(script), moment(messages or (USER,), frozenset(tools))).text


def one(when: dict[str, Any], say: str = "yes") -> dict[str, Any]:
    return {"rules": [{"when": when, "say": say}], "default": {"say": "no"}}


# What it answers


def test_an_empty_script_says_what_the_user_said() -> None:
    assert said({}) == USER.text


def test_the_first_rule_that_matches_answers() -> None:
    rules = [{"when": {"last_user": word}, "say": word} for word in ("Paris", "Rome", "weather")]
    assert said({"rules": rules}) == "Rome"


def test_all_conditions_of_a_rule_must_hold() -> None:
    assert said(one({"last_user": "Rome", "turn": 1})) == "yes"
    assert said(one({"last_user": "Rome", "turn": 2})) == "no"
    assert said(one({"last_user": "Paris", "turn": 1})) == "no"


def test_the_system_prompt_can_be_asked_for() -> None:
    title = Message("system", "Write a title.")
    assert said(one({"system": "title"}), title, USER) == "yes"
    assert said(one({"system": "title"}), USER) == "no"


def test_the_users_words_are_those_since_the_last_answer_that_called_nothing() -> None:
    reminder = Message("user", "Remember to be brief.")
    agent = (USER, CALLS, RESULT, reminder)
    assert said(one({"last_user": "Rome"}), *agent) == "yes"
    assert said(one({"last_user": "Rome"}), *agent, Message("assistant", "Sunny."), reminder) == "no"


def test_who_has_an_answer_gone_on_with_still_has_said_what_he_said() -> None:
    assert said(one({"last_user": "Rome"}), USER, Message("assistant", "It is")) == "yes"


def test_a_result_is_asked_for_by_its_tools_whole_name_and_by_what_it_gave() -> None:
    agent = (USER, CALLS, RESULT)
    assert said(one({"last_tool": "get_weather"}), *agent) == "yes"
    assert said(one({"last_tool": "get_.*", "last_result": r"\d+ degrees"}), *agent) == "yes"
    assert said(one({"last_tool": "weather"}), *agent) == "no"
    assert said(one({"last_result": "rain"}), *agent) == "no"
    assert said(one({"last_tool": ".*"}), USER) == "no"
    assert said(one({"last_tool": ".*"}), *agent, Message("assistant", "Sunny."), USER) == "no"


def test_turns_count_all_answers_and_steps_those_since_the_last_that_called_nothing() -> None:
    talk = (USER, CALLS, RESULT, Message("assistant", "Sunny."), USER, CALLS, RESULT)
    now = moment(talk, frozenset())
    assert (now.turn, now.step) == (4, 2)
    assert said(one({"turn": 4, "step": 2}), *talk) == "yes"


def test_tools_must_all_be_offered_and_none_means_none() -> None:
    assert said(one({"tools": ["read", "get_weather"]})) == "yes"
    assert said(one({"tools": ["read", "write"]})) == "no"
    assert said(one({"tools": []})) == "no"
    assert said(one({"tools": []}), tools=()) == "yes"


def test_steps_answer_one_after_the_other_and_then_the_rule_is_passed_over() -> None:
    script = {
        "rules": [{"when": {"last_user": "Rome"}, "steps": [{"call": {"name": "read"}}, {"say": "done"}]}],
        "default": {"say": "no"},
    }
    assert '"read"' in said(script, USER)
    assert said(script, USER, CALLS, RESULT) == "done"
    assert said(script, USER, CALLS, RESULT, CALLS, RESULT) == "no"


def test_a_rule_that_calls_a_tool_is_passed_over_where_none_of_it_is_offered() -> None:
    script = {"rules": [{"call": {"name": "read"}}], "default": {"say": "a title"}}
    assert said(script, tools=()) == "a title"


def test_groups_stand_in_what_is_thought_said_and_called() -> None:
    answer = {
        "think": "${city}!",
        "say": "Looking at ${1}.",
        "call": [{"name": "get_weather", "arguments": {"city": "${city}", "days": [1, "in ${city}"]}}],
    }
    text = said({"rules": [{"when": {"last_user": r"in (?P<city>\w+)"}, **answer}]})
    assert text == (
        "<think>\nRome!\n</think>\n\nLooking at Rome.\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": [1, "in Rome"]}}\n</tool_call>'
    )


def test_several_calls_follow_each_other() -> None:
    text = said({"rules": [{"call": [{"name": "read", "arguments": {"n": n}} for n in (1, 2)]}]})
    assert text.count("<tool_call>") == 2
    assert "</tool_call>\n<tool_call>" in text


def test_a_group_that_took_no_part_is_empty_and_a_dollar_can_be_written() -> None:
    assert said(one({"last_user": "(snow)|Rome"}, "[${1}] $5 $${HOME}")) == "[] $5 ${HOME}"


def test_texts_that_conditions_look_at_can_be_said_again() -> None:
    answer = "${last_tool}: ${last_result}"
    assert said(one({}, answer), USER, CALLS, RESULT) == "get_weather: sunny, 21 degrees"


def test_what_the_user_says_is_no_template() -> None:
    assert said({}, Message("user", "${system} $${x} \\1")) == "${system} $${x} \\1"


def test_an_answer_may_be_repeated() -> None:
    assert said({"default": {"say": "more ", "repeat": 3}}) == "more more more "


def test_paces_are_the_scripts_unless_an_answer_has_its_own() -> None:
    slow = {"when": {"turn": 2}, "say": "slow", "tokens_per_s": 5}
    script = read_script({"tokens_per_s": 50, "first_token_s": 2, "rules": [slow], "prompt_tokens_per_s": 9})
    assert script.prompt_tokens_per_s == 9
    played = [play(script, at) for at in (_at(1), _at(2))]
    assert [(each.tokens_per_s, each.first_token_s) for each in played] == [(50, 2), (5, 2)]


def _at(turn: int) -> Moment:
    return Moment("", "", None, None, turn, 1, frozenset())


# What is no script


@pytest.mark.parametrize(
    ("data", "loc", "said"),
    [
        ([], (), "no keys"),
        ({"rule": []}, ("rule",), "unknown key"),
        ({"rules": {}}, ("rules",), "not a list"),
        ({"rules": [{"when": {"user": "x"}}]}, ("rules", 0, "when", "user"), "unknown key"),
        ({"rules": [{"when": {"last_user": "("}}]}, ("rules", 0, "when", "last_user"), "regular expression"),
        ({"rules": [{"when": {"turn": 0}}]}, ("rules", 0, "when", "turn"), "whole number"),
        ({"rules": [{"when": {"turn": True}}]}, ("rules", 0, "when", "turn"), "whole number"),
        ({"rules": [{"when": {"tools": "read"}}]}, ("rules", 0, "when", "tools"), "not a list"),
        ({"default": {"say": 5}}, ("default", "say"), "not text"),
        ({"default": {"say": "${name}"}}, ("default", "say"), "names nothing"),
        ({"default": {"say": "${last_user"}}, ("default", "say"), "names nothing"),
        ({"default": {"tokens_per_s": 0}}, ("default", "tokens_per_s"), "tokens a second"),
        ({"default": {"tokens_per_s": float("nan")}}, ("default", "tokens_per_s"), "tokens a second"),
        ({"default": {"first_token_s": -1}}, ("default", "first_token_s"), "seconds"),
        ({"first_token_s": "2s"}, ("first_token_s",), "seconds"),
        ({"default": {"call": {}}}, ("default", "call"), "calls no tool"),
        ({"default": {"call": {"name": "x", "arguments": []}}}, ("default", "call", "arguments"), "object"),
        ({"rules": [{"when": {"step": 1}, "steps": []}]}, ("rules", 0, "when", "step"), "steps of its own"),
        ({"rules": [{"say": "a", "steps": [{}]}]}, ("rules", 0, "say"), "has steps"),
        ({"rules": [{"steps": [{"say": "${1}"}]}]}, ("rules", 0, "steps", 0, "say"), "names nothing"),
        (
            {"rules": [{"when": {"last_user": "(a)", "system": "(b)"}, "say": "${1}"}]},
            ("rules", 0, "say"),
            "names nothing",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(data: Any, loc: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ScriptFault) as fault:
        read_script(data)
    assert fault.value.loc == loc
    assert said in fault.value.message
    assert fault.value.remedy


# The file


def written(folder: Path, text: str) -> Path:
    path = folder / "script.yaml"
    path.write_text(text)
    return path


def test_a_file_is_read_and_known_by_its_content(tmp_path: Path) -> None:
    path = written(tmp_path, "default: {say: one}\n")
    before = script_digest(path)
    assert load_script(path).otherwise.say == "one"
    written(tmp_path, "default: {say: two}\n")
    assert script_digest(path) != before
    assert load_script(written(tmp_path, "")) == Script()
    assert load_script(written(tmp_path, '{"default": {"say": "as JSON"}}')).otherwise.say == "as JSON"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules:\n  - when: {last_user: x}\n    sya: hello\n", "script.yaml:3: rules[0].sya: unknown key"),
        ("rules:\n  - call:\n      - name: x\n        arguments: {on: 2026-01-01}\n", "script.yaml:4: "),
        ("rules: [\n", "script.yaml:2: not valid YAML"),
        ("- x\n", "has no keys in it"),
    ],
)
def test_a_file_that_is_none_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ScriptError) as error:
        script_digest(written(tmp_path, text))
    assert said in error.value.message


def test_a_file_that_is_missing_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="does not exist"):
        load_script(tmp_path / "none.yaml")
    with pytest.raises(ScriptError, match=str(tmp_path)):
        load_script(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScriptError, match="UTF-8"):
        load_script(tmp_path / "bytes")


def test_the_script_of_the_documentation_plays_as_it_says(tmp_path: Path) -> None:
    docs = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
    (example,) = [block for block in docs.split("```yaml\n")[1:] if block.startswith("# agent.yaml")]
    script = load_script(written(tmp_path, example.partition("```")[0]))
    tools = frozenset({"read", "edit"})
    fix, result = Message("user", "fix a.py"), Message("tool", "old", "read")

    def answers(*messages: Message, offered: frozenset[str] = tools) -> str:
        return play(script, moment(messages, offered)).text

    assert answers(Message("system", "Write a title."), fix, offered=frozenset()) == "Fixing a file"
    assert "I read it." in answers(fix)
    assert '"edit", "arguments": {"path": "a.py"' in answers(fix, CALLS, result)
    assert answers(fix, CALLS, result, CALLS, result) == "Done. The file said: old"
    assert answers(fix, offered=frozenset()) == "You said: fix a.py"
    assert script.otherwise.tokens_per_s == 200
