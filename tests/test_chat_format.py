"""serving/chat_format.py: a model's template, rendered as transformers renders it."""

import re
from datetime import UTC, datetime

import pytest

from serving.chat_format import ChatFormat, TemplateBroken
from serving.deltas import CallBegan
from serving.engine import PromptError
from tests.answer_reading import TEMPLATES, TOOLS, chat_format

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO: list[dict[str, object]] = [{"role": "user", "content": "Hello"}]


def render(template: str, messages: list[dict[str, object]] | None = None, bos: str = "<s>") -> str:
    form = ChatFormat(template, bos, "</s>", lambda: datetime(2026, 11, 24, 9, 30, tzinfo=UTC))
    return form.render(HELLO if messages is None else messages)


def test_chatml_ends_where_the_answer_begins() -> None:
    assert render(CHATML) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_bos_and_eos_are_text() -> None:
    assert render("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}") == "<s>Hello</s>"


def test_blocks_leave_no_lines_behind() -> None:
    assert (
        render(
            "{% for m in messages %}\n    {% if true %}\n{{ m['role'] }}\n    {% endif %}\n{% endfor %}\nx"
        )
        == "user\nx"
    )


def test_loops_can_break() -> None:
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"


def test_json_is_not_escaped_for_html() -> None:
    assert render("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'
    assert render("{{ {'a': 1} | tojson(indent=2) }}") == '{\n  "a": 1\n}'


def test_the_date_comes_from_the_given_clock() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "24 Nov 2026"


def test_generation_blocks_are_rendered() -> None:
    assert render("a{% generation %}b{{ bos_token }}{% endgeneration %}c") == "ab<s>c"


def test_no_tools_are_none() -> None:
    assert render("{{ tools is none }}{{ documents is none }}") == "TrueTrue"


def test_a_refusal_by_the_template_says_its_words() -> None:
    with pytest.raises(PromptError, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[5].content.x }}",
        "{{ 1 // 0 }}",
        "{{ nothing() }}",
        "{{ messages[0].pop('role') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ range(10000000) | list }}",
    ],
)
def test_a_template_that_fails_is_a_prompt_error(template: str) -> None:
    with pytest.raises(PromptError):
        render(template)


def test_the_sandbox_keeps_python_out_of_reach() -> None:
    with pytest.raises(PromptError, match="sandbox"):
        render("{{ cycler.__init__.__globals__.os.popen('id').read() }}")


def test_the_messages_are_not_changed() -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": ["a"]}]
    with pytest.raises(PromptError):
        render("{{ messages[0]['content'].append('b') }}", messages)
    assert messages == [{"role": "user", "content": ["a"]}]


def test_a_template_that_does_not_compile_says_where() -> None:
    with pytest.raises(TemplateBroken, match="endfor"):
        ChatFormat("{% for x in messages %}", "", "", datetime.now)


@pytest.mark.parametrize("name", ["_x", "__class__"])
def test_a_namespace_takes_no_names_of_pythons_own(name: str) -> None:
    for template in (
        f"{{% set ns = namespace({name}=1) %}}",
        f"{{% set ns = namespace() %}}{{% set ns.{name} = 1 %}}",
    ):
        with pytest.raises(PromptError, match="sandbox"):
            render(template)


def test_namespaces_and_dicts_do_what_templates_need() -> None:
    assert render("{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ dict(b=3).b }}") == "23"


# Messages, tools and variables


def test_variables_reach_the_template_and_replace_nothing_else() -> None:
    form = ChatFormat(
        "{{ enable_thinking }}{{ messages | length }}{{ tools }}{{ bos_token }}", "<s>", "", datetime.now
    )
    variables = {"enable_thinking": False, "messages": [], "tools": [1], "bos_token": "x"}
    assert form.render(HELLO, (), variables) == "False1None<s>"


def test_tools_are_openais_objects() -> None:
    form = ChatFormat("{{ tools[0].type }} {{ tools[0].function.name }}", "", "", datetime.now)
    assert form.render(HELLO, TOOLS) == "function get_weather"


def test_what_is_none_is_left_out() -> None:
    message: dict[str, object] = {"role": "user", "content": "x", "name": None}
    assert render("{{ messages[0].name is defined }}", [message]) == "False"


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_has_the_names_that_templates_read(key: str) -> None:
    template = "{{ messages[0].thinking }}/{{ messages[0].reasoning_content }}"
    assert render(template, [{"role": "assistant", "content": "", key: "Hm."}]) == "Hm./Hm."


def called(arguments: object, call_id: str = "call_0123456789abcdef") -> list[dict[str, object]]:
    call = {"id": call_id, "type": "function", "function": {"name": "roll", "arguments": arguments}}
    return [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": "1"},
    ]


ARGUMENTS = '{"sides": 6, "kind": "fair ü"}'


@pytest.mark.parametrize(
    "name", ["smollm2_tools", "hermes_thinking", "llama3", "deepseek_v3", "deepseek_v31", "gpt_oss"]
)
@pytest.mark.parametrize("arguments", [ARGUMENTS, {"sides": 6, "kind": "fair ü"}])
def test_arguments_are_what_the_template_wants(name: str, arguments: object) -> None:
    assert ARGUMENTS in chat_format(name).render(called(arguments), TOOLS)


def test_arguments_that_are_no_object_stay_what_they_are() -> None:
    assert '"arguments": "[1"' in chat_format("smollm2_tools").render(called("[1"), TOOLS)


def test_ids_from_elsewhere_become_ones_that_mistral_takes() -> None:
    form = chat_format("mistral_v3")
    text = form.render(called(ARGUMENTS), TOOLS)
    assert text == form.render(called(ARGUMENTS), TOOLS)
    assert "call_0" not in text
    assert '"id": "a1B2c3D4e"' in form.render(called(ARGUMENTS, "a1B2c3D4e"), TOOLS)


@pytest.mark.parametrize(
    ("name", "call", "form"),
    [
        ("mistral_v3", '[TOOL_CALLS][{"name": "f", "arguments": {}}]', "[0-9a-f]{9}"),
        ("smollm2_tools", '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "call_[0-9a-f]{24}"),
    ],
)
def test_new_ids_differ_and_the_template_takes_them(name: str, call: str, form: str) -> None:
    known = ChatFormat((TEMPLATES / f"{name}.jinja").read_text(), "", "", datetime.now)
    deltas = [delta for _ in range(2) for delta in known.parser("", TOOLS).push(call)]
    ids = [delta.id for delta in deltas if isinstance(delta, CallBegan)]
    assert all(re.fullmatch(form, each) for each in ids)
    assert len(set(ids)) == 2


# What the template tells of itself


def knows_tools(template: str) -> bool:
    return ChatFormat(template, "", "", datetime.now).knows_tools


WRITES = "{% for m in messages %}{% for c in m.tool_calls or [] %}<tool_call>CALL</tool_call>{% endfor %}{% endfor %}"


def test_tools_are_known_where_they_are_rendered_and_calls_are_read() -> None:
    written = '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    assert knows_tools("{{ tools }}" + WRITES.replace("CALL", written))
    assert not knows_tools("no tools" + WRITES.replace("CALL", written))
    other = "{{ c.function.name }}<arg_key>{{ c.function.arguments | tojson }}</arg_key>"
    assert not knows_tools("{{ tools }}" + WRITES.replace("CALL", other))
    assert not knows_tools("{{ tools }} and an unknown way of calling them")
    assert not knows_tools("{{ raise_exception('no') if tools }}" + WRITES.replace("CALL", written))


def test_a_template_that_only_tells_how_to_call_is_believed() -> None:
    assert knows_tools("{{ tools }} Call them within <tool_call></tool_call>.")


def test_special_tokens_that_are_markers_must_be_seen() -> None:
    assert not chat_format("smollm2_tools", {"<|im_end|>": 2}).special
    assert chat_format("smollm2_tools", {"<tool_call>": 7}).special
    assert chat_format("hermes_thinking", {"</think>": 7}).special


AFTER_TOOL = called(ARGUMENTS)


@pytest.mark.parametrize(
    ("name", "variables", "opens"),
    [
        ("smollm2_tools", {}, False),
        ("hermes_thinking", {}, False),
        ("hermes_thinking", {"enable_thinking": True}, True),
        ("hermes_thinking", {"enable_thinking": False}, False),
        ("deepseek_v3", {}, True),
        ("deepseek_v31", {}, False),
        ("deepseek_v31", {"thinking": True}, True),
        ("gemma4", {}, False),
        ("gpt_oss", {}, False),
    ],
)
def test_whether_the_prompt_opens_reasoning(name: str, variables: dict[str, object], opens: bool) -> None:
    form = chat_format(name)
    for messages in (HELLO, AFTER_TOOL):
        assert form.opens_reasoning(messages, TOOLS, variables) == opens
        end = form.prompt_end(messages, TOOLS, variables)
        assert form.render(messages, TOOLS, variables).endswith(end[-20:])


def test_a_prompts_end_is_rendered_once_for_a_kind_of_conversation() -> None:
    moments: list[datetime] = []

    def now() -> datetime:
        moments.append(datetime(2026, 11, 24, tzinfo=UTC))
        return moments[-1]

    form = ChatFormat("{{ strftime_now('%Y') }}<think></think>{{ depth }}", "", "", now)
    for _ in range(3):
        assert form.prompt_end(HELLO) == "2026<think></think>"
    assert len(moments) == 1
    assert form.prompt_end(HELLO, (), {"depth": "x"}).endswith("x")
    assert len(moments) == 2


def test_a_prompts_end_that_cannot_be_worked_out_is_empty() -> None:
    form = ChatFormat("{{ raise_exception('</think>') }}", "", "", datetime.now)
    assert form.prompt_end(HELLO) == ""
    assert not form.opens_reasoning(HELLO)
