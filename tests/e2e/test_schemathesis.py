"""Schemathesis asks a whole homeport whatever its OpenAPI description allows, and much that it does not: nothing
breaks, and every answer is one that the description tells of."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.installation import Homeport, ended_after

pytestmark = pytest.mark.clients

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance"
)
SEED = 10
MACHINES = "^/api/machines/"
ENDLESS = "/api/arrivals"
"""Events for as long as somebody looks."""
TIMEOUT_S = 350
"""On two cores that others use too it takes 60."""
SOURCE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeport]:
    """Not the shared one: sessions are ended here, and the machine is emptied. Without keys everybody is an admin."""
    with ended_after(Homeport(tmp_path_factory.mktemp("compat"), count="1")) as installed:
        installed.up()
        yield installed


def asked(homeport: Homeport, folder: Path, *filters: str, examples: int) -> None:
    machine = homeport.get("/api/fleet")["machines"][0]["name"]
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("st")), "run", f"{homeport.url}/openapi.json"),
            *("--checks", CHECKS, "--seed", str(SEED), "--workers", "1", "--max-examples", str(examples)),
            *("--phases", "coverage,fuzzing", "--request-timeout", "60", "--no-shrink", "--warnings", "off"),
            *filters,
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(SOURCE),
            "SCHEMATHESIS_HOOKS": "tests.e2e.schemathesis_hooks",
            "COMPAT_MODEL": "smollm2",
            "COMPAT_MACHINE": machine,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4000:]


@pytest.mark.timeout(TIMEOUT_S + 60)
def test_no_request_to_a_model_or_about_sessions_breaks_anything(own: Homeport, tmp_path: Path) -> None:
    asked(own, tmp_path, "--exclude-path-regex", MACHINES, "--exclude-path", ENDLESS, examples=5)
    assert own.get("/ready")["status"] == "ready"


@pytest.mark.timeout(TIMEOUT_S + 60)
def test_no_action_on_a_machine_breaks_anything(own: Homeport, tmp_path: Path) -> None:
    asked(own, tmp_path, "--include-path-regex", MACHINES, examples=8)
