"""Talks through an SDK: `python sdks.py SDK HISTORY WORDS …`, a streamed turn for each of the words.

Runs in the clients' own environment, without homeport. HISTORY is a file of messages, which a program that uses such
an SDK keeps itself. The SDKs' own variables and MODEL say whom to ask, MAX_TOKENS how much.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MODEL = os.environ["MODEL"]
MOST = int(os.environ["MAX_TOKENS"])
LOOP = asyncio.Runner()
"""One for all turns: a connection that is kept between them belongs to it."""


def openai(history: Any) -> Iterator[str]:
    from openai import OpenAI

    stream: Any = OpenAI().chat.completions.create(
        model=MODEL, messages=history, stream=True, temperature=0, max_tokens=MOST
    )
    for chunk in stream:
        for choice in chunk.choices:
            yield choice.delta.content or ""


def langchain(history: Any) -> Iterator[str]:
    from langchain_openai import ChatOpenAI

    for chunk in ChatOpenAI(model=MODEL, temperature=0, max_tokens=MOST).stream(history):
        yield str(chunk.text)


def litellm(history: Any) -> Iterator[str]:
    from litellm import completion

    stream = completion(
        model=f"openai/{MODEL}", messages=history, stream=True, temperature=0, max_tokens=MOST
    )
    for chunk in stream:
        yield chunk.choices[0].delta.content or ""


def anthropic(history: Any) -> Iterator[str]:
    from anthropic import Anthropic

    greedy = {"temperature": 0}  # the SDK has no name for it any more
    stream: Any = Anthropic().messages.stream(
        model=MODEL, messages=history, max_tokens=MOST, extra_body=greedy
    )
    with stream as events:
        yield from events.text_stream


def agents(history: Any) -> Iterator[str]:
    """OpenAI's Agents SDK, over the Responses API."""
    from agents import Agent, ModelSettings, Runner

    async def talk() -> str:
        agent = Agent(name="guide", model=MODEL, model_settings=ModelSettings(max_tokens=MOST))
        result = Runner.run_streamed(agent, history)
        async for _ in result.stream_events():
            pass
        return str(result.final_output)

    yield LOOP.run(talk())


SDKS: dict[str, Callable[[Any], Iterator[str]]] = {
    "agents": agents,
    "anthropic": anthropic,
    "openai": openai,
    "langchain": langchain,
    "litellm": litellm,
}


def main() -> None:
    sdk, file, *words = sys.argv[1:]
    kept = Path(file)
    history = json.loads(kept.read_text()) if kept.exists() else []
    for line in words:
        history.append({"role": "user", "content": line})
        answer = ""
        for text in SDKS[sdk](history):
            answer += text
            print(text, end="", flush=True)
        print()
        history.append({"role": "assistant", "content": answer})
        kept.write_text(json.dumps(history))


if __name__ == "__main__":
    main()
