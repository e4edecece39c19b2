"""serving/chat_format.py: a model's template, rendered as transformers renders it."""

from datetime import UTC, datetime

import pytest

from serving.chat_format import ChatFormat, TemplateBroken
from serving.engine import PromptError

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello"}]


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
