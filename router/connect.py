"""The clients that are known: how each is told, where, and by what its conversations are told apart. Pure.

Knows no file of anybody's and no running router.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from router import connect_settings
from router.connect_settings import KEY_VARIABLE, NO_KEY, Reach, Settings

Form = Literal["json", "toml", "yaml", "env", "words"]


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
    told: Callable[[Reach], Settings]
    """What it is told of a reach, whichever session that names."""
    naming: str
    """By what its conversations are told apart."""
    notes: tuple[str, ...] = ()
    """What else there is to know or to do."""
    session: str | None = None
    """The one that it is in, unless told another: for one whose history is no clue to its session."""
    source: str = "header"
    """As what homeport sees it, once set up: `header`, `body`, `path` or `guess`."""
    agents: tuple[str, ...] = ()
    """How its user agent begins; its product token."""
    is_library: bool = False
    """Other clients are built upon it, and bear its user agent."""
    has_jsonc: bool = False
    """Where there is a file of that name in `.jsonc`, it counts more."""

    def settings(self, reach: Reach) -> Settings:
        """What it is told, in its own session unless the reach names one."""
        return self.told(replace(reach, session=reach.session or self.session))

    def is_agent(self, agent: str) -> bool:
        return agent.partition("/")[0].lower() in self.agents


GUESSED = (
    "their history alone, which is a guess; a base URL for each project names that: `--session my-project`"
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
            connect_settings.claude_code,
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
            connect_settings.codex,
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
            connect_settings.opencode,
            "the header x-session-affinity, which it sends by itself",
            (KEY_IN_ENV, "`small_model` keeps titles and summaries here, too."),
            agents=("opencode",),
            has_jsonc=True,
        ),
        Client(
            "open-webui",
            "Open WebUI",
            "env",
            ".config/homeport/open-webui.env",
            (("XDG_CONFIG_HOME", "homeport/open-webui.env"),),
            connect_settings.open_webui,
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
            connect_settings.continue_dev,
            GUESSED,
            source="guess",
        ),
        Client(
            "aider",
            "aider",
            "yaml",
            ".aider.conf.yml",
            (),
            connect_settings.aider,
            "the base URL: all that it does is the session `aider`",
            (
                "It moves its instructions to the newest message, so that its history is no clue to its session.",
                "For each project one of its own: `--session my-project`, its lines in the project's .aider.conf.yml.",
            ),
            session="aider",
            source="path",
        ),
        Client(
            "zed",
            "Zed",
            "json",
            ".config/zed/settings.json",
            (("XDG_CONFIG_HOME", "zed/settings.json"),),
            connect_settings.zed,
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
            connect_settings.llm,
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
            connect_settings.librechat,
            "the header X-Conversation-Id, which the template under `headers` fills in",
            ("It goes into librechat.yaml, below its `version`.",),
        ),
        Client("cline", "Cline", "words", "", (), connect_settings.cline, GUESSED, source="guess"),
        Client(
            "openai-sdk",
            "OpenAI's SDKs",
            "words",
            "",
            (),
            connect_settings.openai_sdk,
            "the header x-session-id, which your code sets",
            agents=("openai", "asyncopenai", "agents"),
            is_library=True,
        ),
        Client(
            "langchain",
            "LangChain",
            "words",
            "",
            (),
            connect_settings.langchain,
            "the header x-session-id, which your code sets",
        ),
    )
}
"""By name, in the order in which they are shown."""
