"""What each known client has to be told to use homeport. Pure.

Which clients there are, and where each keeps its settings, says connect.py; how they are written down, connect_text.py.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

NO_KEY = "local"
"""What clients that insist on a key are told where homeport has none."""
KEY_HERE = "YOUR-HOMEPORT-KEY"
"""Stands where a key belongs that is not known."""
KEY_VARIABLE = "HOMEPORT_API_KEY"
ANSWER_TOKENS = 4096
"""At most so many of a context are announced for an answer, to clients that want to know."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Where homeport is found, and as what."""

    url: str
    """Of the router, without a path."""
    model: str
    context: int
    """Tokens of it."""
    needs_key: bool = False
    key: str | None = None
    """None: there is none, or it is not known."""
    machine: str | None = None
    session: str | None = None

    @property
    def root(self) -> str:
        """For clients that add `/v1` themselves."""
        at = "" if self.machine is None else f"/m/{quote(self.machine, safe='')}"
        named = "" if self.session is None else f"/s/{quote(self.session, safe='')}"
        return f"{self.url.rstrip('/')}{at}{named}"

    @property
    def v1(self) -> str:
        return f"{self.root}/v1"

    @property
    def shown_key(self) -> str:
        """What to write where a key belongs."""
        return self.key or (KEY_HERE if self.needs_key else NO_KEY)

    @property
    def answer(self) -> int:
        return max(1, min(ANSWER_TOKENS, self.context // 2))


@dataclass(frozen=True, slots=True)
class Settings:
    """What goes into a client's file, or `words` for a person."""

    data: Any = None
    """A mapping, or a list of mappings."""
    first: Mapping[str, Any] | None = None
    """What a file that is new needs beside it, before it."""
    words: str = ""
    holds_key: bool = True
    """Whether a key stands among them."""


def claude_code(reach: Reach) -> Settings:
    env = {
        "ANTHROPIC_BASE_URL": reach.root,
        "ANTHROPIC_AUTH_TOKEN": reach.shown_key,
        "ANTHROPIC_MODEL": reach.model,
        "ANTHROPIC_DEFAULT_FABLE_MODEL": reach.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": reach.model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": reach.model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": reach.model,
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(reach.context),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(reach.answer),
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    return Settings({"env": env})


def codex(reach: Reach) -> Settings:
    provider = {"name": "homeport", "base_url": reach.v1, "wire_api": "responses"}
    if reach.needs_key:
        provider["env_key"] = KEY_VARIABLE
    data = {
        "model": reach.model,
        "model_provider": "homeport",
        "model_context_window": reach.context,
        "model_providers": {"homeport": provider},
    }
    return Settings(data, holds_key=False)


def opencode(reach: Reach) -> Settings:
    options: dict[str, Any] = {"baseURL": reach.v1}
    if reach.needs_key:
        options["apiKey"] = f"{{env:{KEY_VARIABLE}}}"
    limit = {"context": reach.context, "output": reach.answer}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "homeport",
        "options": options,
        "models": {reach.model: {"name": reach.model, "limit": limit}},
    }
    model = f"homeport/{reach.model}"
    data = {"model": model, "small_model": model, "provider": {"homeport": provider}}
    return Settings(data, {"$schema": "https://opencode.ai/config.json"}, holds_key=False)


def open_webui(reach: Reach) -> Settings:
    return Settings(
        {
            "OPENAI_API_BASE_URL": reach.v1,
            "OPENAI_API_KEY": reach.shown_key,
            "DEFAULT_MODELS": reach.model,
            "ENABLE_FORWARD_USER_INFO_HEADERS": "true",
            "ENABLE_OLLAMA_API": "false",
        }
    )


def continue_dev(reach: Reach) -> Settings:
    model = {
        "name": f"homeport {reach.model}",
        "provider": "openai",
        "model": reach.model,
        "apiBase": reach.v1,
        "apiKey": reach.shown_key,
        "roles": ["chat", "edit", "apply"],
        "defaultCompletionOptions": {"contextLength": reach.context, "maxTokens": reach.answer},
    }
    return Settings({"models": [model]}, {"name": "homeport", "version": "1.0.0", "schema": "v1"})


def aider(reach: Reach) -> Settings:
    model = f"openai/{reach.model}"
    data = {
        "openai-api-base": reach.v1,
        "openai-api-key": reach.shown_key,
        "model": model,
        "weak-model": model,
        "show-model-warnings": False,
    }
    return Settings(data)


def zed(reach: Reach) -> Settings:
    can = {"tools": True, "images": False, "parallel_tool_calls": False, "prompt_cache_key": True}
    model = {
        "name": reach.model,
        "display_name": reach.model,
        "max_tokens": reach.context,
        "max_output_tokens": reach.answer,
        "capabilities": can,
    }
    provider = {"api_url": reach.v1, "available_models": [model]}
    default = {"provider": "homeport", "model": reach.model}
    data = {
        "language_models": {"openai_compatible": {"homeport": provider}},
        "agent": {"default_model": default},
    }
    return Settings(data, holds_key=False)


def llm(reach: Reach) -> Settings:
    model: dict[str, Any] = {
        "model_id": f"homeport/{reach.model}",
        "model_name": reach.model,
        "api_base": reach.v1,
        "supports_tools": True,
        "supports_schema": True,
    }
    if reach.needs_key:
        model["api_key_name"] = "homeport"
    return Settings([model], holds_key=False)


def librechat(reach: Reach) -> Settings:
    endpoint = {
        "name": "homeport",
        "apiKey": f"${{{KEY_VARIABLE}}}" if reach.needs_key else NO_KEY,
        "baseURL": reach.v1,
        "models": {"default": [reach.model], "fetch": True},
        "titleConvo": True,
        "titleModel": "current_model",
        "headers": {"X-Conversation-Id": "{{LIBRECHAT_BODY_CONVERSATIONID}}"},
    }
    return Settings({"endpoints": {"custom": [endpoint]}}, holds_key=False)


def cline(reach: Reach) -> Settings:
    key = shlex.quote(reach.shown_key)
    command = f"cline auth -p openai-compatible -b {reach.v1} -k {key} -m {reach.model}"
    words = (
        "API Provider:         OpenAI Compatible",
        f"Base URL:             {reach.v1}",
        f"API Key:              {reach.shown_key}",
        f"Model ID:             {reach.model}",
        f"Context Window Size:  {reach.context}",
        f"Its command line:     {command}",
    )
    return Settings(words="\n".join(words))


def openai_sdk(reach: Reach) -> Settings:
    return Settings(
        words=f"""\
from openai import OpenAI

client = OpenAI(base_url={_quoted(reach.v1)}, api_key={_quoted(reach.shown_key)})
answer = client.chat.completions.create(
    model={_quoted(reach.model)},
    messages=[{{"role": "user", "content": "Hello"}}],
    extra_headers={{"x-session-id": "my-conversation"}},  # one name for each conversation
)
print(answer.choices[0].message.content)"""
    )


def langchain(reach: Reach) -> Settings:
    return Settings(
        words=f"""\
from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model={_quoted(reach.model)},
    base_url={_quoted(reach.v1)},
    api_key={_quoted(reach.shown_key)},
    default_headers={{"x-session-id": "my-conversation"}},  # a model object for each conversation
)
print(model.invoke("Hello").content)"""
    )


def _quoted(text: str) -> str:
    """As Python writes a text, in double quotes."""
    return json.dumps(text, ensure_ascii=False)
