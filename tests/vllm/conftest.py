"""One cluster with one model on both engines, a core each. Where this machine cannot, the tests say so and are
skipped."""

import os
import time
from collections.abc import Iterator

import pytest

from cluster.processes import ours
from cluster.vllm_env import bundled_folder, vllm_env
from router.lifecycle import end_everything
from tests.e2e.installation import Homeport, eventually
from tests.e2e.sdk_tests import TEMPLATE
from tests.hub import Hub, add_all, hub
from tests.vllm.prepare import is_set_up, lacking

LLAMA, VLLM = "smollm2", "smollm2-vllm"
REPOSITORY = "o/smollm2"
OTHER = """\
  - name: {name}
    engine: vllm
    source: bundled
    needs: {{cores: 1, memory: 4GiB}}
    context: 2048
    sessions: 4
    hold: 1s
    queue: 20s
    options: {{python: {python}, chat_template: {template}}}
"""
LOADS_S = 150.0


@pytest.fixture(scope="session", autouse=True)
def equipped() -> None:
    if (why := lacking()) is not None:
        pytest.skip(f"vLLM beside llama.cpp: {why}")
    if not is_set_up():
        pytest.fail("vLLM is not set up: run `make test-vllm`, or `homeport setup-vllm --cpu` before")


@pytest.fixture(scope="session")
def site(equipped: None) -> Iterator[Hub]:
    """Hugging Face, where the bundled model is a repository."""
    with hub(add_all(bundled_folder(os.environ), REPOSITORY)) as made:
        yield made


@pytest.fixture(scope="session")
def installed(site: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    others = OTHER.format(name=VLLM, python=vllm_env(os.environ, "cpu").python, template=TEMPLATE)
    more = ("sessions: 4", f"options: {{chat_template: {TEMPLATE}}}")
    folder = tmp_path_factory.mktemp("both")
    extra = {"HF_ENDPOINT": site.url, "HF_HOME": str(folder / "hf")}
    installed = Homeport(folder, count="1", memory="2GiB", more=more, others=others, extra=extra)
    try:
        began = time.monotonic()
        installed.up()
        eventually(lambda: replica_of(installed, VLLM)["state"] == "ready", LOADS_S)
        print(f"\nboth engines are ready after {time.monotonic() - began:.0f} s")
        yield installed
    finally:
        end_everything(installed.paths)
    assert ours(installed.paths) == []


def replica_of(installed: Homeport, model: str) -> dict[str, object]:
    (replica,) = [replica for replica in installed.replicas() if replica["model"] == model]
    return replica
