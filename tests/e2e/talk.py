"""Conversations with a running homeport, as its users have them: through the openai SDK, over real sockets."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from openai import APIError, OpenAI

MODEL = "smollm2"
SYSTEM = {"role": "system", "content": "You are a helpful AI assistant."}
"""Without it the model's template adds one of its own, under which this small model talks nonsense."""


def client(url: str) -> OpenAI:
    """An SDK client that never retries by itself, so that a broken stream is seen."""
    return OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60)


@dataclass
class Answer:
    """One streamed answer. `error` is what broke it, if anything did."""

    headers: dict[str, str]
    text: str = ""
    finish: str | None = None
    usage: Any = None
    homeport: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass
class Conversation:
    """A session that grows by a turn at each `say`. With an empty name it is not told which one it is."""

    url: str
    name: str
    history: list[dict[str, str]] = field(default_factory=lambda: [SYSTEM])
    answers: list[Answer] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    """More of them, with each turn."""

    def say(self, words: str, max_tokens: int = 24, on_text: Callable[[], None] = lambda: None) -> Answer:
        """One streamed turn; the answer joins the history when it came whole. `on_text` hears each chunk."""
        return self.ask([*self.history, {"role": "user", "content": words}], max_tokens, on_text)

    def aside(self, words: str, max_tokens: int = 24) -> Answer:
        """A request under the same name that is no turn of the conversation."""
        kept = list(self.history)
        answer = self.ask([SYSTEM, {"role": "user", "content": words}], max_tokens)
        self.history = kept
        return answer

    def ask(self, messages: Any, max_tokens: int = 24, on_text: Callable[[], None] = lambda: None) -> Answer:
        """One streamed request with these messages; they and the answer become the history when it came whole."""
        answer = Answer({})
        self.answers.append(answer)
        with client(self.url) as sdk:
            try:
                raw = sdk.chat.completions.with_raw_response.create(
                    model=MODEL,
                    messages=messages,
                    stream=True,
                    stream_options={"include_usage": True},
                    temperature=0,
                    max_tokens=max_tokens,
                    extra_headers={**({"x-session-id": self.name} if self.name else {}), **self.headers},
                )
                answer.headers = dict(raw.headers)
                for chunk in raw.parse():
                    answer.usage = chunk.usage or answer.usage
                    answer.homeport = getattr(chunk, "homeport", None) or answer.homeport
                    for choice in chunk.choices:
                        answer.text += choice.delta.content or ""
                        answer.finish = choice.finish_reason or answer.finish
                        on_text()
            except (APIError, OSError) as error:
                answer.error = f"{type(error).__name__}: {error}"
            except Exception as error:  # noqa: BLE001 - whatever the SDK's transport raises when a stream breaks
                answer.error = f"{type(error).__name__}: {error}"
        if answer.error is None and answer.finish:
            self.history = [*messages, {"role": "assistant", "content": answer.text}]
        return answer


def at_once(*calls: Callable[[], object]) -> None:
    """Run calls at the same time, to the end of all."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
