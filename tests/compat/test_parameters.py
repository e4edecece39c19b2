"""What OpenAI's SDK may send on each path: every parameter is known, be it refused by its name."""

from collections.abc import Set
from typing import Any

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from router.dialects import responses_request
from serving import chat_request, completion_request, embedding_request

RESPONSES: Set[str] = responses_request.PASSED | responses_request.READ | responses_request.HARMLESS
PATHS: dict[str, tuple[Any, Set[str]]] = {
    "/v1/chat/completions": (
        chat_create_params.CompletionCreateParamsStreaming,
        chat_request.SUPPORTED | chat_request.HARMLESS | chat_request.UNSUPPORTED,
    ),
    "/v1/completions": (
        completion_create_params.CompletionCreateParamsStreaming,
        completion_request.SUPPORTED | completion_request.HARMLESS | completion_request.UNSUPPORTED,
    ),
    "/v1/embeddings": (
        embedding_create_params.EmbeddingCreateParams,
        embedding_request.SUPPORTED | embedding_request.HARMLESS | embedding_request.UNSUPPORTED,
    ),
    "/v1/responses": (
        response_create_params.ResponseCreateParamsStreaming,
        RESPONSES | responses_request.UNSUPPORTED.keys(),
    ),
}


@pytest.mark.parametrize("path", PATHS)
def test_every_parameter_of_the_sdk_is_known(path: str) -> None:
    told, known = PATHS[path]
    sent = told.__required_keys__ | told.__optional_keys__
    assert sorted(sent - known) == []
    assert "model" in sent
