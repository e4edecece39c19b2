"""The openai SDK against llama.cpp."""

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.e2e.installation import Homeport
from tests.e2e.sdk_tests import *  # noqa: F403  the tests themselves
from tests.e2e.sdk_tests import shared_replica
from tests.e2e.talk import MODEL, client


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    """One replica that several sessions share, with tools."""
    with shared_replica(tmp_path_factory.mktemp("sdk")) as installed:
        yield installed


@pytest.fixture
def sdk(installed: Homeport) -> Iterator[OpenAI]:
    with client(installed.url) as sdk:
        yield sdk


@pytest.fixture
def model() -> str:
    return MODEL


def test_embeddings(sdk: OpenAI, model: str) -> None:
    texts = ["A cat sleeps.", "The cat is asleep.", "Interest rates rose."]
    decoded = sdk.embeddings.create(model=model, input=texts)  # the SDK asks for base64
    plain = sdk.embeddings.create(model=model, input=texts, encoding_format="float")
    assert [item.index for item in decoded.data] == [0, 1, 2]
    assert decoded.usage.prompt_tokens > 0
    for one, other in zip(decoded.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-2)
        assert sum(value * value for value in one.embedding) == pytest.approx(1.0, rel=1e-3)
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.embeddings.create(model=model, input="x", dimensions=3)
    assert refused.value.param == "dimensions"
