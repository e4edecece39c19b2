"""What each client is told, as it is written down, and put into files that say something already."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from router.connect import CLIENTS
from router.connect_settings import KEY_HERE, Reach, Settings
from router.connect_text import block, edited, merged
from router.jsonc import Unclear, read, with_members

PLAIN = Reach("http://127.0.0.1:8000", "assistant", 8192)
KEYED = Reach("http://den-pc:8000/", "assistant", 8192, True, "hp-secret")
PAGE = (Path(__file__).parent.parent / "docs" / "clients.md").read_text()
PARSED: dict[str, Any] = {
    "json": lambda text: read(text).value,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
    "env": lambda text: dict(line.split("=", 1) for line in text.splitlines()),
}
FILED = [name for name, client in CLIENTS.items() if client.file]


def said(name: str, reach: Reach = PLAIN) -> str:
    return block(CLIENTS[name].form, CLIENTS[name].settings(reach))


def into(name: str, text: str, reach: Reach = PLAIN) -> str:
    client = CLIENTS[name]
    there = PARSED[client.form](text)
    new = edited(client.form, text, there, settings := client.settings(reach))
    assert PARSED[client.form](new) == merged(there, settings.data)
    assert edited(client.form, new, PARSED[client.form](new), settings) == new
    return new


@pytest.mark.parametrize("name", CLIENTS)
def test_the_page_on_clients_shows_each_block_as_it_is_printed(name: str) -> None:
    section = PAGE.partition("## How to connect")[2].partition(f"\n### {CLIENTS[name].title}\n")[2]
    section = section.partition("\n### ")[0]
    found = re.search(r"```\w*\n(.*?)\n```", section, re.DOTALL)
    assert found is not None
    assert found.group(1) == said(name)
    assert f"homeport connect {name}" in section


@pytest.mark.parametrize("name", FILED)
def test_a_block_says_in_its_format_what_is_to_be_set(name: str) -> None:
    settings = CLIENTS[name].settings(PLAIN)
    expected = settings.data if settings.first is None else {**settings.first, **settings.data}
    assert PARSED[CLIENTS[name].form](said(name)) == expected


@pytest.mark.parametrize("name", CLIENTS)
def test_each_is_told_the_address_and_the_model(name: str) -> None:
    assert "http://127.0.0.1:8000" in said(name)
    assert "assistant" in said(name)


@pytest.mark.parametrize("name", CLIENTS)
def test_a_machine_and_a_session_stand_in_the_address(name: str) -> None:
    reach = Reach("http://127.0.0.1:8000", "assistant", 8192, machine="den pc", session="a/b")
    assert "http://127.0.0.1:8000/m/den%20pc/s/a%2Fb" in said(name, reach)


@pytest.mark.parametrize("name", CLIENTS)
def test_a_key_stands_there_only_where_the_client_cannot_take_it_from_its_surroundings(name: str) -> None:
    assert ("hp-secret" in said(name, KEYED)) == CLIENTS[name].settings(KEYED).holds_key
    unknown = Reach("http://den-pc:8000", "assistant", 8192, True)
    assert (KEY_HERE in said(name, unknown)) == CLIENTS[name].settings(unknown).holds_key


def test_only_claude_code_adds_v1_itself_and_only_aider_has_a_session_without_being_told() -> None:
    assert json.loads(said("claude-code"))["env"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8000"
    without = [name for name in CLIENTS if "http://127.0.0.1:8000/v1" not in said(name)]
    assert without == ["claude-code", "aider"]
    assert yaml.safe_load(said("aider"))["openai-api-base"] == "http://127.0.0.1:8000/s/aider/v1"
    mine = Reach("http://127.0.0.1:8000", "assistant", 8192, session="mine")
    assert yaml.safe_load(said("aider", mine))["openai-api-base"] == "http://127.0.0.1:8000/s/mine/v1"


def test_members_of_json_are_added_and_all_else_keeps_its_bytes() -> None:
    before = '{\n    "permissions": {"allow": ["Bash(ls)" ]},\n    "env": {"EDITOR": "vi"}\n}\n'
    after = into("claude-code", before)
    assert after.startswith('{\n    "permissions": {"allow": ["Bash(ls)" ]},\n    "env": {"EDITOR": "vi",\n')
    assert '\n        "ANTHROPIC_MODEL": "assistant",\n' in after
    assert after.endswith('"1"\n    }\n}\n')


def test_comments_and_commas_too_many_stay_in_zeds_settings() -> None:
    before = """// Zed settings
{
  "theme": "One Dark", // dark
  "agent": {
    /* mine */
    "default_model": {"provider": "anthropic", "model": "x"},
  },
}
"""
    after = into("zed", before)
    for kept in ("// Zed settings\n", '"theme": "One Dark", // dark\n', "    /* mine */\n"):
        assert kept in after
    assert read(after).value["agent"]["default_model"] == {"provider": "homeport", "model": "assistant"}


def test_another_model_of_zeds_provider_stays() -> None:
    other = into("zed", "{}", Reach("http://127.0.0.1:8000", "coder", 4096))
    models = read(into("zed", other)).value["language_models"]["openai_compatible"]["homeport"][
        "available_models"
    ]
    assert [each["name"] for each in models] == ["coder", "assistant"]


def test_comments_that_would_be_lost_are_a_reason_to_refuse() -> None:
    with pytest.raises(Unclear, match="comments in 'available_models' would be lost"):
        into(
            "zed",
            '{"language_models": {"openai_compatible": {"homeport": {"available_models": [ /* none */ ]}}}}',
        )
    with pytest.raises(Unclear, match="a comment beside 'model' would be lost"):
        into("codex", 'model = "gpt-5" # the best\n')
    with pytest.raises(Unclear, match="comments beside 'homeport/assistant' would be lost"):
        into("llm", "- model_id: homeport/assistant\n  model_name: other # mine\n")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "1",
        "{",
        '{"a" 1}',
        '{"a": 1 "b": 2}',
        "{]",
        '{"a": tru}',
        "{} {}",
        '{"a": "\n"}',
        "[" * 500,
        "/*",
    ],
)
def test_what_is_no_object_of_json_is_refused(text: str) -> None:
    with pytest.raises(Unclear):
        with_members(text, {"a": 1}, merged)


def test_codexs_tables_and_settings_of_others_stay() -> None:
    before = """# mine
model = "gpt-5"
approval_policy = "never"

[model_providers.other]
base_url = "http://elsewhere/v1"

[projects."/home/ann"]
trust_level = "trusted"
"""
    after = into("codex", before)
    assert after.startswith('# mine\nmodel = "assistant"\napproval_policy = "never"\n')
    assert before.partition("\n\n")[2] in after
    moved = into("codex", after, Reach("http://den-pc:8000", "assistant", 8192))
    assert tomllib.loads(moved)["model_providers"]["homeport"]["base_url"] == "http://den-pc:8000/v1"
    assert moved.count("[model_providers.homeport]") == 1


def test_a_new_table_of_codex_does_not_take_settings_of_the_top() -> None:
    after = into("codex", '[tui]\ntheme = "dark"\n')
    assert tomllib.loads(after)["model_provider"] == "homeport"
    assert tomllib.loads(after)["tui"] == {"theme": "dark"}


def test_other_models_of_continue_stay_with_their_comments() -> None:
    before = """name: Mine
version: 0.0.1
schema: v1
models:
    # the big one
    - name: GPT
      provider: openai
      model: gpt-5
context:
  - provider: code
"""
    after = into("continue", before)
    assert "    # the big one\n    - name: GPT\n" in after
    assert after.startswith("name: Mine\n")
    assert after.endswith("context:\n  - provider: code\n")


def test_a_model_of_llm_that_has_changed_is_replaced_in_its_place() -> None:
    before = "- model_id: first\n  model_name: x\n\n" + said("llm") + "\n- model_id: last\n  model_name: y\n"
    after = into("llm", before, Reach("http://den-pc:8000", "assistant", 8192))
    assert [each["model_id"] for each in yaml.safe_load(after)] == ["first", "homeport/assistant", "last"]


def test_aiders_other_settings_stay() -> None:
    before = "# aider\nmodel: gpt-5\ndark-mode: true\n"
    assert into("aider", before).startswith(
        "# aider\nmodel: openai/assistant\ndark-mode: true\nopenai-api-base:"
    )


def test_variables_are_set_once_and_others_stay() -> None:
    before = "WEBUI_NAME=Den\nOPENAI_API_KEY=old\n"
    assert into("open-webui", before).startswith("WEBUI_NAME=Den\nOPENAI_API_KEY=local\n")


def test_lines_end_as_they_did() -> None:
    after = into("aider", "dark-mode: true\r\n")
    assert "\n" not in after.replace("\r\n", "")
    assert "\n" not in into("claude-code", '{\r\n  "a": 1\r\n}\r\n').replace("\r\n", "")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
objects = st.dictionaries(st.text(max_size=4), values, max_size=4)


@given(objects, objects, st.sampled_from([None, 1, 2, "\t"]))
def test_whatever_is_put_into_whatever_says_both(there: Any, wanted: Any, indent: Any) -> None:
    text = json.dumps(there, indent=indent)
    assert json.loads(with_members(text, wanted, merged)) == merged(there, wanted)


@given(objects, st.text('{}[],:"/*\n ab1', max_size=30), st.integers(0, 60))
def test_a_file_with_anything_in_it_is_read_or_refused(there: Any, noise: str, at: int) -> None:
    text = json.dumps(there)
    try:
        new = with_members(text[:at] + noise + text[at:], {"k": {"l": 1}}, merged)
    except Unclear:
        return
    assert read(new).value["k"]["l"] == 1


def test_a_named_entry_of_a_list_is_replaced_and_others_stay() -> None:
    there = {"models": [{"name": "a", "x": 1}, {"name": "b"}, "odd"]}
    new = merged(there, {"models": [{"name": "a", "x": 2}, {"name": "c"}]})
    assert new == {"models": [{"name": "a", "x": 2}, {"name": "b"}, "odd", {"name": "c"}]}


def test_words_have_no_file() -> None:
    with pytest.raises(Unclear):
        edited("words", "x", {}, Settings(words="y"))
