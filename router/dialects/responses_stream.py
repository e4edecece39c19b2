"""One answer of a chat as a response: its items, and the events of a stream. Pure.

A whole answer goes the same way as a streamed one, its events unsaid.
"""

import json
from collections.abc import Mapping
from typing import Any

from router.dialects.chat_events import ChatEvents, Chunk, Comment, Done, Event, Failed
from router.dialects.dialect import BROKE_OFF, Naming
from router.dialects.responses_answer import INCOMPLETE, response_object, usage_of
from router.dialects.responses_calls import PREFIXES
from router.dialects.responses_ids import item_id
from router.dialects.responses_output import Call, Grows, Say, Thought, Words
from router.dialects.responses_request import Request

_json = json.JSONEncoder(separators=(",", ":")).encode


class Answer:
    """A response as it grows from the parts of a chat's message, one item open at a time."""

    def __init__(self, request: Request, naming: Naming, session: str | None, say: Say) -> None:
        self._request, self._naming, self._session, self._say = request, naming, session, say
        self._output: list[Mapping[str, Any]] = []
        self._open: Grows | None = None
        self._logprobs: list[Any] = []
        """Of tokens whose words have not come yet."""
        self._call = -1
        """The index of the chat's call that is open."""
        self._finish = "stop"
        self._usage: Mapping[str, Any] | None = None
        self._home: Any = None
        self._model: str = request.told["model"]

    def belongs_to(self, session: str | None) -> None:
        self._session = session

    def begin(self) -> None:
        for kind in ("created", "in_progress"):
            self._say(kind, {"response": self._object("in_progress")})

    def add(self, told: Mapping[str, Any], part: Mapping[str, Any], choice: Mapping[str, Any] | None) -> None:
        """`told`: an event or a whole answer; `part`: the delta or the message of its `choice`."""
        self._model = told.get("model") or self._model
        self._usage = told.get("usage") or self._usage
        self._home = told.get("homeport") or self._home
        if choice is None:
            return
        self._logprobs += (choice.get("logprobs") or {}).get("content") or []
        if thought := part.get("reasoning_content"):
            self._thought().add(thought)
        if words := part.get("content"):
            self._words().add(words, self._take_logprobs())
        for index, call in enumerate(part.get("tool_calls") or ()):
            self._called(call, call.get("index", index))
        if choice.get("finish_reason") is not None:
            self._finish = choice["finish_reason"]

    def end(self) -> dict[str, Any]:
        """The response, whole; nothing was said of that yet."""
        if not self._output and self._open is None:
            self._words()
        if isinstance(self._open, Words) and (rest := self._take_logprobs()):
            self._open.add("", rest)
        reason = INCOMPLETE.get(self._finish)
        status = "completed" if reason is None else "incomplete"
        self._close(status)
        told = self._object(status)
        if reason is not None:
            told["incomplete_details"] = {"reason": reason}
        elif self._naming.elapsed_s is not None:
            told["completed_at"] = self._naming.now_s + int(self._naming.elapsed_s())
        return told | {"usage": usage_of(self._usage), "homeport": self._home}

    def cancelled(self) -> dict[str, Any]:
        """The response, with the items that were whole."""
        return self._object("cancelled")

    def failed(self, error: Mapping[str, Any]) -> dict[str, Any]:
        """The response that did not come to its end."""
        told = {"code": error.get("code") or "server_error", "message": error["message"]}
        return {**self._object("failed"), "error": told}

    def _object(self, status: str) -> dict[str, Any]:
        return response_object(self._request, self._naming, self._session, self._model, status, self._output)

    def _words(self) -> Words:
        if not isinstance(self._open, Words):
            index = self._next()
            self._open = Words(self._say, index, self._id("msg", index))
        return self._open

    def _thought(self) -> Thought:
        if not isinstance(self._open, Thought):
            index, request = self._next(), self._request
            called = self._id("rs", index)
            self._open = Thought(self._say, index, called, request.summarizes, request.seals)
        return self._open

    def _called(self, call: Mapping[str, Any], index: int) -> None:
        function = call.get("function") or {}
        if not isinstance(self._open, Call) or index != self._call:
            at = self._next()
            tool = self._request.toolbox.called(function["name"])
            self._call = index
            self._open = Call(self._say, at, self._id(PREFIXES[tool.kind], at), call["id"], tool)
        if arguments := function.get("arguments"):
            self._open.add(arguments)

    def _next(self) -> int:
        """The place of the item that begins; the one before it is whole."""
        self._close("completed")
        return len(self._output)

    def _close(self, status: str) -> None:
        if self._open is not None:
            self._output.append(self._open.close(status))
            self._open = None

    def _id(self, prefix: str, index: int) -> str:
        return item_id(prefix, self._naming, self._session, index)

    def _take_logprobs(self) -> list[Any]:
        taken, self._logprobs = self._logprobs, []
        return taken


class Stream:
    """The events of one response. The last one is held back until `end`: by then the response is kept."""

    def __init__(self, request: Request, naming: Naming, session: str | None) -> None:
        self._answer = Answer(request, naming, session, self._say)
        self._events = ChatEvents()
        self._said: list[bytes] = []
        self._number = 0
        self._begun = False
        self._failed = False
        self.response: dict[str, Any] | None = None
        """Once it is whole."""

    def belongs_to(self, session: str | None) -> None:
        """Not once anything of the answer has come: by then the client knows its id."""
        self._answer.belongs_to(session)

    def take(self, part: bytes) -> bytes:
        for event in self._events.take(part):
            if self.response is None and not self._failed:
                self._hear(event)
        return self._take()

    def end(self) -> bytes:
        if self.response is not None:
            self._say(self.response["status"], {"response": self.response})
        elif not self._failed:
            self._fail(BROKE_OFF)
        return self._take()

    def cancelled(self) -> dict[str, Any]:
        return self._answer.cancelled()

    def _hear(self, event: Event) -> None:
        match event:
            case Comment(line):
                self._said.append(line)
            case Chunk(data):
                self._begin()
                choice = event.choice
                self._answer.add(data, {} if choice is None else choice["delta"], choice)
            case Failed(error):
                self._fail(error)
            case Done():
                self._begin()
                self.response = self._answer.end()

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._answer.begin()

    def _fail(self, error: Mapping[str, Any]) -> None:
        """Told twice, as OpenAI does it: some clients read the one, some the other."""
        self._begin()
        self._failed = True
        told = {name: error.get(name) for name in ("code", "message", "param")}
        self._event("error", {**told, "error": dict(error)})
        self._say("failed", {"response": self._answer.failed(error)})

    def _say(self, kind: str, data: Mapping[str, Any]) -> None:
        self._event(f"response.{kind}", data)

    def _event(self, name: str, data: Mapping[str, Any]) -> None:
        told = {"type": name, **data, "sequence_number": self._number}
        self._number += 1
        self._said.append(f"event: {name}\ndata: {_json(told)}\n\n".encode())

    def _take(self) -> bytes:
        said, self._said = b"".join(self._said), []
        return said
