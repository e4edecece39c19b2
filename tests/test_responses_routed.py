"""`/v1/responses` through the router: which session it is, what the host is asked, how an answer fails."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from router import turn
from router.addressing import Addressed
from router.dialects.responses_ids import session_of
from router.peers import NotYet
from tests.standins import MODEL, AnswersHost, DropsMidStreamHost, SplitsEverywhereHost, error, routed

PREVIOUS = "resp_0123456789abcdef01234567ffeeddccbbaa99887766554433221100"


class RefusesHost(AnswersHost):
    """Finds fault with every chat."""

    async def whole(self, request: Any, told: dict[str, str]) -> Any:
        answer = {"error": {"message": "'max_completion_tokens' must be from 1 to 9, not 0", "code": "invalid_value",
                            "type": "invalid_request_error", "param": "max_completion_tokens"}}  # fmt: skip
        response = error(400, "invalid_value")
        response.text = json.dumps(answer)
        return response


async def test_a_host_is_asked_for_a_chat_and_answers_with_a_response(tmp_path: Path) -> None:
    host = AnswersHost("den/0")
    async with routed(tmp_path, host) as router:
        answer = await router.post("/v1/responses", input="Hi", prompt_cache_key="tea", max_output_tokens=9)
    assert answer.status == 200
    assert answer.json()["output"][0]["content"][0]["text"] == "Hello there"
    assert answer.headers["x-homeport-source"] == "body"
    assert session_of(answer.json()["id"]) == answer.headers["x-homeport-session"]
    assert host.paths == ["/v1/chat/completions"]
    assert json.loads(host.bodies[0])["max_completion_tokens"] == 9


async def test_a_stream_goes_on_in_the_dialect_however_the_host_splits_it(tmp_path: Path) -> None:
    async with (
        routed(tmp_path, SplitsEverywhereHost("den/0")) as router,
        AsyncOpenAI(base_url=f"{router.url}/v1", api_key="x", max_retries=0) as sdk,
    ):
        stream = await sdk.responses.create(model=MODEL, input="Hi", stream=True)
        kinds = [event.type async for event in stream]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


async def test_an_answers_id_tells_its_session_although_that_was_found_behind_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "HEAD_AFTER_S", 0.0)
    host = SplitsEverywhereHost("den/0")
    async with routed(tmp_path, host) as router:
        addressing = router.parts.relay.addressing
        find, not_yet = addressing.find, iter([NotYet()])

        async def finds(addressed: Addressed) -> Addressed:
            for error in not_yet:
                raise error
            return await find(addressed)

        monkeypatch.setattr(addressing, "find", finds)
        answer = await router.post("/v1/responses", input="Hi", stream=True)
    assert "x-homeport-session" not in answer.headers
    told = [json.loads(line[6:]) for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    assert {session_of(each["response"]["id"]) for each in told if "response" in each} == {
        host.seen[0]["x-homeport-public"]
    }


async def test_a_host_lost_in_the_middle_is_an_error_that_the_sdk_raises(tmp_path: Path) -> None:
    async with (
        routed(tmp_path, DropsMidStreamHost("den/0")) as router,
        AsyncOpenAI(base_url=f"{router.url}/v1", api_key="x", max_retries=0) as sdk,
    ):
        stream = await sdk.responses.create(model=MODEL, input="Hi", stream=True)
        with pytest.raises(openai.APIError, match="Send the request again"):
            _ = [event async for event in stream]


async def test_errors_have_openais_shape_and_name_fields_as_the_client_does(tmp_path: Path) -> None:
    async with routed(tmp_path, RefusesHost("den/0")) as router:
        by_host = await router.post("/v1/responses", input="Hi", max_output_tokens=0)
        by_dialect = await router.post("/v1/responses", input="Hi", background=True)
        no_model = await router.post("/v1/responses", model="none", input="Hi")
    assert [each.status for each in (by_host, by_dialect, no_model)] == [400, 400, 404]
    assert by_host.json()["error"]["param"] == "max_output_tokens"
    assert by_host.json()["error"]["message"] == "'max_output_tokens' must be from 1 to 9, not 0"
    assert by_dialect.json()["error"]["param"] == "background"
    assert no_model.json()["error"]["code"] == "model_not_found"


async def test_a_response_that_nobody_kept_is_not_found(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        answer = await router.post("/v1/responses", input="Hi", previous_response_id=PREVIOUS)
    assert answer.status == 400
    assert answer.json()["error"]["code"] == "previous_response_not_found"
