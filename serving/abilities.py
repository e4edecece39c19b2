"""What a model can, in the words that hosts tell routers. Pure."""

from typing import Any

from serving.engine import ModelFacts


def abilities_of(facts: ModelFacts, chat_format: Any) -> list[str]:
    """Of a model that is loaded. `chat_format`: its ChatFormat, None for one without a template.

    `chat`; `tools`: it can be told of tools, and its calls are read; `reasoning`: what it thinks is told apart;
    `structured_outputs`: an answer can be held to a JSON schema; `embeddings`.
    """
    talks = chat_format is not None
    can = {
        "chat": talks,
        "tools": talks and chat_format.knows_tools,
        "reasoning": talks and chat_format.knows_reasoning,
        "structured_outputs": talks,
        "embeddings": facts.embedding > 0,
    }
    return [name for name, does in can.items() if does]
