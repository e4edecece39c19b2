"""vllm-router, sglang-router and LiteLLM from PyPI, in an environment of their own below build/.

Each has one worker: their Rust runtimes start a thread for each CPU that they may use, which is one, and are told so.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.relay.relays import Missing, Place, Relay, Start
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
WANTED = Path(__file__).with_name("peers.txt")
VENV = ROOT / "build" / "relay-peers"
DONE = VENV / "done"
"""Holds the digest of the list that is installed."""
INSTALL_S = 900
ONE_THREAD = (("TOKIO_WORKER_THREADS", "1"), ("RAYON_NUM_THREADS", "1"))


def get() -> None:
    """The environment with all three; made anew when the list has changed. Raises Missing."""
    digest = hashlib.sha256(WANTED.read_bytes()).hexdigest()
    if DONE.exists() and DONE.read_text() == digest:
        return
    print(f"Installing what {WANTED.name} lists, once.", flush=True)
    python = str(VENV / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _done([sys.executable, "-m", "venv", "--clear", str(VENV)])
    _done([*pip, "--only-binary", ":all:", "--requirement", str(WANTED)])
    DONE.write_text(digest)


def _done(command: list[str]) -> None:
    try:
        ran = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"cannot be installed: {error}") from error
    if ran.returncode != 0:
        said = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        raise Missing(f"cannot be installed: {' '.join(said)[-300:]}")


def _urls(place: Place) -> list[str]:
    return [f"http://127.0.0.1:{port}" for port in place.hosts]


def _rust(module: str, policy: str, *more: str) -> Callable[[Place], Start]:
    def start(place: Place) -> Start:
        command = [str(VENV / "bin" / "python"), "-m", f"{module}.launch_router", "--host", "127.0.0.1"]
        command += ["--port", str(place.port), "--prometheus-port", str(free_port()), "--log-level", "error"]
        return Start([*command, "--policy", policy, *more, "--worker-urls", *_urls(place)], ONE_THREAD)

    return start


def _litellm(place: Place) -> Start:
    config = {
        "model_list": [
            {
                "model_name": "tiny",
                "litellm_params": {"model": "openai/tiny", "api_base": f"{url}/v1", "api_key": "none"},
            }
            for url in _urls(place)
        ],
        "router_settings": {"optional_pre_call_checks": ["session_affinity"]},
        "general_settings": {"master_key": place.key},
    }
    file = place.folder / "litellm.yaml"
    file.write_text(json.dumps(config))
    command = [str(VENV / "bin" / "litellm"), "--config", str(file), "--host", "127.0.0.1"]
    command += ["--port", str(place.port), "--num_workers", "1", "--telemetry", "False"]
    env = (("LITELLM_LOG", "ERROR"), ("LITELLM_LOCAL_MODEL_COST_MAP", "True"), ("NO_DOCS", "True"))
    return Start(command, env)


VLLM_ROUTER = Relay(
    "vllm-router",
    "one thread; consistent hash of the session's header, no keys",
    _rust("vllm_router", "consistent_hash"),
    get,
)
SGLANG_ROUTER = Relay(
    "sglang-router",
    "one thread; sessions assigned by its routing key, no keys",
    _rust("sglang_router", "manual", "--assignment-mode", "min_load"),
    get,
    session_header="x-smg-routing-key",
)
LITELLM = Relay(
    "litellm",
    "one worker; session affinity, its master key",
    _litellm,
    get,
    session_header="x-litellm-session-id",
    streams=10,
    idle_streams=200,
)
