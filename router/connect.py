"""What each known client has to be told to use homeport, and by what its conversations are told apart. Pure.

Knows no file of anybody's and no running router; how settings are written down says connect_text.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

Form = Literal["json", "toml", "yaml", "env", "words"]

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


@dataclass(frozen=True, slots=True)
class Client:
    """One that is known by name."""

    name: str
    title: str
    form: Form
    file: str
    """Below the person's home; another place where one of `elsewhere` is set. "": none that could be written."""
    elsewhere: tuple[tuple[str, str], ...]
    """Variables that say where it looks instead, each with the path below its value."""
    settings: Callable[[Reach], Settings]
    naming: str
    """By what its conversations are told apart."""
    notes: tuple[str, ...] = ()
    """What else there is to know or to do."""
    source: str = "header"
    """As what homeport sees it, once set up: `header`, `body`, or `guess`."""
    agents: tuple[str, ...] = ()
    """How its user agent begins; its product token."""

    def is_agent(self, agent: str) -> bool:
        return agent.partition("/")[0].lower() in self.agents


def claude_code(reach: Reach) -> Settings:
    env = {
        "ANTHROPIC_BASE_URL": reach.root,
        "ANTHROPIC_AUTH_TOKEN": reach.shown_key,
        "ANTHROPIC_MODEL": reach.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": reach.model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": reach.model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": reach.model,
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
    words = (
        "API Provider:         OpenAI Compatible",
        f"Base URL:             {reach.v1}",
        f"API Key:              {reach.shown_key}",
        f"Model ID:             {reach.model}",
        f"Context Window Size:  {reach.context}",
    )
    return Settings(words="\n".join(words))


def openai_sdk(reach: Reach) -> Settings:
    return Settings(
        words=f"""\
from openai import OpenAI

client = OpenAI(base_url={reach.v1!r}, api_key={reach.shown_key!r})
answer = client.chat.completions.create(
    model={reach.model!r},
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
    model={reach.model!r},
    base_url={reach.v1!r},
    api_key={reach.shown_key!r},
    default_headers={{"x-session-id": "my-conversation"}},  # a model object for each conversation
)
print(model.invoke("Hello").content)"""
    )


GUESSED = (
    "nothing names them: they are guessed from their history. A base URL for each project names it: "
    "`--session my-project`"
)
KEY_IN_ENV = f"With keys: `export {KEY_VARIABLE}=…` where it is started; the key does not stand in the file."

CLIENTS: Mapping[str, Client] = {
    client.name: client
    for client in (
        Client(
            "claude-code",
            "Claude Code",
            "json",
            ".claude/settings.json",
            (("CLAUDE_CONFIG_DIR", "settings.json"),),
            claude_code,
            "the header X-Claude-Code-Session-Id, which it sends by itself",
            (
                "The last two lines stop a line that changes in system prompts, and telemetry.",
                "It begins with some 20,000 tokens of tools and instructions: the model's `context` must hold them.",
            ),
            agents=("claude-cli",),
        ),
        Client(
            "codex",
            "Codex",
            "toml",
            ".codex/config.toml",
            (("CODEX_HOME", "config.toml"),),
            codex,
            "the header session-id, which it sends by itself",
            (KEY_IN_ENV,),
            agents=("codex_exec", "codex_cli_rs", "codex-tui", "codex_vscode"),
        ),
        Client(
            "opencode",
            "opencode",
            "json",
            ".config/opencode/opencode.json",
            (("OPENCODE_CONFIG", ""), ("XDG_CONFIG_HOME", "opencode/opencode.json")),
            opencode,
            "the header x-session-affinity, which it sends by itself",
            (KEY_IN_ENV, "`small_model` keeps titles and summaries here, too."),
            agents=("opencode",),
        ),
        Client(
            "open-webui",
            "Open WebUI",
            "env",
            ".config/homeport/open-webui.env",
            (("XDG_CONFIG_HOME", "homeport/open-webui.env"),),
            open_webui,
            "the header X-OpenWebUI-Chat-Id, which ENABLE_FORWARD_USER_INFO_HEADERS switches on",
            (
                "Start it with them: `set -a; . FILE; open-webui serve`, or `docker run --env-file FILE …`.",
                "What was once saved on its page Connections counts more than these: change the address there.",
            ),
        ),
        Client(
            "continue",
            "Continue",
            "yaml",
            ".continue/config.yaml",
            (("CONTINUE_GLOBAL_DIR", "config.yaml"),),
            continue_dev,
            GUESSED,
            source="guess",
        ),
        Client(
            "aider",
            "aider",
            "yaml",
            ".aider.conf.yml",
            (),
            aider,
            GUESSED,
            source="guess",
        ),
        Client(
            "zed",
            "Zed",
            "json",
            ".config/zed/settings.json",
            (("XDG_CONFIG_HOME", "zed/settings.json"),),
            zed,
            'the field prompt_cache_key, which `"prompt_cache_key": true` switches on',
            (
                f"It wants a key in any case, in {KEY_VARIABLE} or on its page: yours, or without keys `{NO_KEY}`.",
            ),
            source="body",
            agents=("zed",),
        ),
        Client(
            "llm",
            "llm",
            "yaml",
            ".config/io.datasette.llm/extra-openai-models.yaml",
            (
                ("LLM_USER_PATH", "extra-openai-models.yaml"),
                ("XDG_CONFIG_HOME", "io.datasette.llm/extra-openai-models.yaml"),
            ),
            llm,
            GUESSED,
            ("`llm -m homeport/MODEL 'Hello'` asks it.", "With keys: `llm keys set homeport`."),
            source="guess",
        ),
        Client(
            "librechat",
            "LibreChat",
            "yaml",
            "",
            (),
            librechat,
            "the header X-Conversation-Id, which the template under `headers` fills in",
            ("It goes into librechat.yaml, below its `version`.",),
        ),
        Client("cline", "Cline", "words", "", (), cline, GUESSED, source="guess"),
        Client(
            "openai-sdk",
            "OpenAI's SDKs",
            "words",
            "",
            (),
            openai_sdk,
            "the header x-session-id, which your code sets",
            agents=("openai", "asyncopenai"),
        ),
        Client(
            "langchain",
            "LangChain",
            "words",
            "",
            (),
            langchain,
            "the header x-session-id, which your code sets",
        ),
    )
}
"""By name, in the order in which they are shown."""
