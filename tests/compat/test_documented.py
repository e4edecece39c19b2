"""docs/compatibility.md beside the code: what is refused by name, and what is taken without effect, on each path."""

import re
from pathlib import Path

import pytest

from router.dialects import responses_request
from router.openapi import OPERATIONS
from serving import chat_request, completion_request, embedding_request

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()
CHECKS = {
    "/v1/chat/completions": (chat_request.UNSUPPORTED, chat_request.HARMLESS),
    "/v1/completions": (completion_request.UNSUPPORTED, completion_request.HARMLESS),
    "/v1/embeddings": (embedding_request.UNSUPPORTED, embedding_request.HARMLESS),
    "/v1/responses": (frozenset(responses_request.UNSUPPORTED), responses_request.HARMLESS),
}


@pytest.mark.parametrize("path", CHECKS)
def test_the_page_names_what_a_path_refuses_and_what_it_takes_without_effect(path: str) -> None:
    (row,) = re.findall(rf"^\| `{path}` \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
    assert [frozenset(re.findall(r"`(\w+)`", cell)) for cell in row] == list(CHECKS[path])


def test_each_path_that_the_page_names_is_described() -> None:
    table = PAGE.split("\n## ")[0]
    named = set(re.findall(r"`(/(?:v1|api)/[\w/]+)`", table))
    assert named <= {operation.path for operation in OPERATIONS}
    assert len(named) > 15
