"""What clients of OpenAI, Anthropic and Ollama are told of models, through the router."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from anthropic import AsyncAnthropic, NotFoundError

from tests.standins import MODEL, AnswersHost, Router, routed

ANTHROPIC = {"anthropic-version": "2023-06-01"}


class KnowingHost(AnswersHost):
    """Says what its model can."""

    def about(self) -> dict[str, Any]:
        return {**super().about(), "abilities": ["chat", "tools", "embeddings"]}


async def ids(
    router: Router, path: str = "/v1/models", headers: Mapping[str, str] | None = None
) -> list[str]:
    return [each["id"] for each in (await router.get(path, headers=headers)).json()["data"]]


async def test_models_come_from_the_picture_in_openais_shape(tmp_path: Path) -> None:
    async with routed(tmp_path, KnowingHost("den/0")) as router:
        (model,) = (await router.get("/v1/models")).json()["data"]
        assert model.pop("created") > 0
        parameters = model.pop("supported_parameters")
        assert model == {
            "id": MODEL,
            "object": "model",
            "owned_by": "homeport",
            "context_length": 512,
            "max_model_len": 512,
            "meta": {"n_ctx": 512, "n_ctx_train": 512},
            "architecture": {
                "modality": "text->text",
                "input_modalities": ["text"],
                "output_modalities": ["text"],
            },
            "capabilities": {
                "chat": True,
                "tools": True,
                "reasoning": False,
                "structured_outputs": False,
                "embeddings": True,
                "vision": False,
            },
            "homeport": {"engine": "llama.cpp", "machines": {"den": "ready"}},
        }
        assert ("tools" in parameters, "response_format" in parameters) == (True, False)
        assert (await router.get(f"/v1/models/{MODEL}")).json()["context_length"] == 512
        unknown = await router.get("/v1/models/huge")
        assert (unknown.status, unknown.code) == (404, "model_not_found")
        assert MODEL in unknown.json()["error"]["message"]


async def test_what_no_host_has_told_of_a_model_is_null(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        model = (await router.get(f"/v1/models/{MODEL}")).json()
        assert (model["capabilities"]["tools"], model["capabilities"]["vision"]) == (None, False)
        assert model["supported_parameters"] is None


async def test_a_model_at_a_machine_is_always_found_and_listed_if_the_config_says_so(tmp_path: Path) -> None:
    hosts = AnswersHost("den/0"), AnswersHost("attic/0")
    async with routed(tmp_path / "not", *hosts) as router:
        assert await ids(router) == [MODEL]
        assert (await router.get(f"/v1/models/{MODEL}@den")).json()["homeport"]["machines"] == {
            "den": "ready"
        }
        assert (await router.get(f"/v1/models/{MODEL}@shed")).code == "model_not_found"
    async with routed(tmp_path / "listed", *hosts, list_machines=True) as router:
        assert await ids(router) == [MODEL, f"{MODEL}@attic", f"{MODEL}@den"]
        assert await ids(router, "/m/den/v1/models") == [MODEL]
        names = [each["name"] for each in (await router.get("/api/tags")).json()["models"]]
        assert names == [MODEL, f"{MODEL}@attic", f"{MODEL}@den"]
        answer = await router.chat(model=f"{MODEL}@den")
        assert answer.headers["x-homeport-machine"] == "den"


async def test_anthropics_clients_get_anthropics_shape(tmp_path: Path) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        listed = (await router.get("/v1/models", headers=ANTHROPIC)).json()
        (model,) = listed.pop("data")
        assert listed == {"has_more": False, "first_id": MODEL, "last_id": MODEL}
        assert model.pop("created_at").endswith("Z")
        assert model == {
            "type": "model",
            "id": MODEL,
            "display_name": MODEL,
            "max_input_tokens": 512,
            "max_tokens": 512,
            "lifecycle": "active",
        }
        assert (await router.get(f"/v1/models/{MODEL}", headers=ANTHROPIC)).json()["type"] == "model"
        unknown = await router.get("/v1/models/huge", headers=ANTHROPIC)
        assert (unknown.status, unknown.json()["error"]["type"]) == (404, "not_found_error")


async def test_anthropics_sdk_lists_models_and_finds_one(tmp_path: Path) -> None:
    async with (
        routed(tmp_path, AnswersHost("den/0")) as router,
        AsyncAnthropic(base_url=router.url, api_key="unused", max_retries=0) as sdk,
    ):
        assert [model.id async for model in sdk.models.list()] == [MODEL]
        assert (await sdk.models.retrieve(f"{MODEL}@den")).id == f"{MODEL}@den"
        with pytest.raises(NotFoundError):
            await sdk.models.retrieve("huge")


async def test_ollamas_pages_tell_of_models(tmp_path: Path) -> None:
    async with routed(tmp_path, KnowingHost("den/0"), AnswersHost("attic/0", state="loading")) as router:
        (tag,) = (await router.get("/api/tags")).json()["models"]
        assert (tag["name"], tag["model"], tag["digest"]) == (MODEL, MODEL, "d")
        (loaded,) = (await router.get("/api/ps")).json()["models"]
        assert (loaded["name"], loaded["context_length"]) == (MODEL, 512)
        assert (await router.get("/m/attic/api/ps")).json()["models"] == []
        assert (await router.get("/api/version")).json()["version"].count(".") == 2
        for asked in (
            {"model": f"{MODEL}:latest"},
            {"model": None, "name": MODEL},
            {"model": f"{MODEL}@den"},
        ):
            shown = (await router.post("/api/show", **asked)).json()
            assert shown["capabilities"] == ["completion", "tools", "embedding"]
            family = shown["model_info"]["general.architecture"]
            assert shown["model_info"][f"{family}.context_length"] == 512


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    [
        ("POST", "/api/show", b'{"model": "huge"}', 404),
        ("POST", "/api/show", b"{", 400),
        ("POST", "/api/show", b"[]", 400),
        ("POST", "/api/show", b"{}", 400),
        ("GET", "/m/shed/api/tags", b"", 404),
        ("POST", "/api/pull", b'{"model": "tiny"}', 400),
        ("POST", "/api/create", b"", 400),
        ("DELETE", "/api/delete", b"", 400),
        ("POST", "/api/chat", b"{", 400),
        ("GET", "/api/chat", b"", 405),
    ],
)
async def test_ollamas_clients_read_an_error_as_a_text(
    tmp_path: Path, method: str, path: str, sent: bytes, status: int
) -> None:
    async with routed(tmp_path, AnswersHost("den/0")) as router:
        answer = await router.ask(method, path, data=sent)
    assert answer.status == status
    assert isinstance(answer.json()["error"], str)


async def test_a_key_is_told_of_its_own_models_and_machines_on_every_page(tmp_path: Path) -> None:
    digest = sha256(b"anna").hexdigest()
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"- {{name: anna, sha256: '{digest}', machines: [den]}}\n")
    keys.chmod(0o600)
    anna = {"authorization": "Bearer anna"}
    hosts = AnswersHost("den/0"), AnswersHost("attic/0")
    async with routed(tmp_path, *hosts, keys_file=keys, list_machines=True) as router:
        assert await ids(router, headers=anna) == [MODEL, f"{MODEL}@den"]
        assert (await router.get(f"/v1/models/{MODEL}@attic", headers=anna)).status == 404
        told = (await router.get(f"/v1/models/{MODEL}", headers=anna)).json()
        assert told["homeport"]["machines"] == {"den": "ready"}
        assert len((await router.get("/api/tags", headers=anna)).json()["models"]) == 2
        for method, path in (("GET", "/api/tags"), ("GET", "/api/version"), ("POST", "/api/show")):
            assert (await router.ask(method, path)).status == 401
        answer = await router.post("/api/chat", messages=[{"role": "user", "content": "Hi"}], headers=anna)
        assert (answer.status, answer.headers["x-homeport-machine"]) == (200, "den")
