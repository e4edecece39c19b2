"""The openai SDK against both engines: the same tests."""

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.e2e.installation import Homeport
from tests.e2e.sdk_tests import *  # noqa: F403  the tests themselves
from tests.e2e.talk import client
from tests.vllm.conftest import LLAMA, VLLM

pytestmark = pytest.mark.vllm


@pytest.fixture(params=[LLAMA, VLLM])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sdk(installed: Homeport) -> Iterator[OpenAI]:
    with client(installed.url) as sdk:
        yield sdk


def test_what_vllm_cannot_do_is_refused_by_name(sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.embeddings.create(model=VLLM, input="x")
    assert refused.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="typical_p"):
        sdk.completions.create(model=VLLM, prompt="a", max_tokens=1, extra_body={"typical_p": 0.5})
