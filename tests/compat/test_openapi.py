"""The OpenAPI description beside what is served: every path, both ways."""

import re
from pathlib import Path

from fastapi.routing import APIRoute

from router.openapi import OPERATIONS, PATH, describe
from router.request import ENDPOINTS
from tests.standins import MODEL, AnswersHost, Router, routed

FILES = {"/", "/board/{name}", "/desk/{machine}"}
"""What a browser gets, which is no API."""
DESCRIBED = [(operation.method, operation.path) for operation in OPERATIONS]


def served(router: Router) -> set[tuple[str, str]]:
    pages = {
        (method.lower(), route.path_format)
        for route in router.parts.front.pages.routes
        if isinstance(route, APIRoute) and route.path_format not in FILES
        for method in route.methods or ()
    }
    return pages | {("post", path) for path in ENDPOINTS}


async def test_what_is_served_is_described_and_nothing_else(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        assert served(router) == set(DESCRIBED)
    assert len(DESCRIBED) == len(set(DESCRIBED))
    paths = describe("1")["paths"]
    assert {(method, path) for path, methods in paths.items() for method in methods} == set(DESCRIBED)


async def test_the_description_is_read_without_a_key_and_names_nothing_of_the_cluster(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"- {{name: anna, sha256: '{'0' * 64}'}}\n")
    keys.chmod(0o600)
    async with routed(tmp_path, AnswersHost("den/0"), keys_file=keys) as router:
        answer = await router.get(PATH)
        assert (await router.get("/v1/models")).status == 401
    assert answer.status == 200
    told = answer.json()
    assert told == describe(told["info"]["version"])
    assert not {MODEL, "den", "anna"} & set(answer.body.decode().replace('"', " ").split())


def test_ids_are_unique_and_parts_of_paths_are_parameters() -> None:
    found = [(path, each) for path, methods in describe("1")["paths"].items() for each in methods.values()]
    ids = [operation["operationId"] for _, operation in found]
    assert len(ids) == len(set(ids))
    for path, operation in found:
        told = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
        assert told == set(re.findall(r"{(\w+)}", path))
