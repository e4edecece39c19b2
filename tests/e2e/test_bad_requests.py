"""What a client does wrong, through the router to a real host: the answer has OpenAI's shape and names the remedy."""

import contextlib
import http.client
import json
from typing import Any

import pytest

from tests.e2e.installation import Homeport
from tests.e2e.talk import MODEL

HELLO = [{"role": "user", "content": "Hello"}]
MIB = 1024**2


def post(
    homeport: Homeport, body: bytes, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", homeport.ports["router"], timeout=30)
    try:
        sent = {"content-type": "application/json", **(headers or {})}
        # Refused before the whole body was read: the answer is there all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", "/v1/chat/completions", body, sent)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["error"]
    finally:
        connection.close()


def chat(**more: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": HELLO, **more}).encode()


@pytest.mark.parametrize(
    ("body", "status", "code", "param", "words"),
    [
        (b"", 400, None, None, "empty"),
        (b'{"model": "smollm2", "messages": [', 400, None, None, "JSON"),
        (b"[1, 2]", 400, None, None, "object"),
        (json.dumps({"messages": HELLO}).encode(), 400, None, "model", "model"),
        (json.dumps({"model": 7, "messages": HELLO}).encode(), 400, None, "model", "model"),
        (chat(model="gpt-4"), 404, "model_not_found", "model", MODEL),
        (json.dumps({"model": MODEL}).encode(), 400, None, "messages", "messages"),
        (chat(messages=[]), 400, None, "messages", "messages"),
        (chat(messages="hello"), 400, None, "messages", "messages"),
        (chat(messages=[{"role": "wizard", "content": "x"}]), 400, None, "messages[0].role", "role"),
        (chat(messages=[{"role": "user", "content": 3}]), 400, None, "messages[0].content", "content"),
        (chat(temperature="hot"), 400, None, "temperature", "temperature"),
        (chat(temperature=-1), 400, None, "temperature", "temperature"),
        (chat(max_tokens=0), 400, None, "max_tokens", "max_tokens"),
        (chat(stream="yes"), 400, None, "stream", "stream"),
        (chat(stop=5), 400, None, "stop", "stop"),
        (chat(n=0), 400, None, "n", "n"),
        (chat(tools=[{"type": "function", "function": {"name": "f"}}]), 400, None, "tools", "tools"),
        (chat(logprobs=3), 400, None, "logprobs", "logprobs"),
        (chat(top_logprobs=3), 400, None, "top_logprobs", "logprobs"),
        (chat(response_format={"type": "yaml"}), 400, None, "response_format", "json_schema"),
        (
            chat(
                response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}
            ),
            400,
            None,
            "response_format",
            "response_format",
        ),
        (chat(temperatur=1), 400, None, "temperatur", "temperatur"),
        (
            chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            400,
            None,
            "messages[0].content[0].type",
            "image",
        ),
        (
            chat(messages=[{"role": "user", "content": "word " * 9000}]),
            400,
            "context_length_exceeded",
            "messages",
            "2048",
        ),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    homeport: Homeport, body: bytes, status: int, code: str | None, param: str | None, words: str
) -> None:
    got, error = post(homeport, body, {"x-session-id": "bad"})
    assert got == status, error
    assert words in error["message"], error
    assert error["param"] == param, error
    assert set(error) >= {"message", "type", "param", "code"}
    if code is not None:
        assert error["code"] == code


def test_a_body_of_33_mib_is_too_large(homeport: Homeport) -> None:
    status, error = post(homeport, b'{"model": "smollm2", "messages": "' + b"x" * (33 * MIB) + b'"}')
    assert status == 413
    assert "32 MiB" in error["message"]


@pytest.mark.parametrize("name", ["", "x" * 513, "a\tb"])
def test_a_bad_session_name_is_refused(homeport: Homeport, name: str) -> None:
    status, error = post(homeport, chat(), {"x-session-id": name})
    assert status == 400
    assert "512" in error["message"]


def test_any_api_key_is_good_on_loopback(homeport: Homeport) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", homeport.ports["router"], timeout=30)
    try:
        connection.request("GET", "/v1/models", headers={"authorization": "Bearer wrong"})
        assert connection.getresponse().status == 200
    finally:
        connection.close()


def test_an_unknown_path_is_a_404_in_openais_shape(homeport: Homeport) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", homeport.ports["router"], timeout=30)
    try:
        connection.request("GET", "/v1/nothing")
        answer = connection.getresponse()
        assert answer.status == 404
        assert json.loads(answer.read())["error"]["message"]
    finally:
        connection.close()
