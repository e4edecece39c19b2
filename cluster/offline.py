"""The environment of a host that is to have no way out: what makes libraries ask nobody, and nothing that would show
them one. Pure.

It binds those that obey it. That nothing gets out is the matter of cluster/network.py.
"""

from collections.abc import Mapping

SWITCHES: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "offline",
    "SYSTEMD_NSS_RESOLVE_NETWORK": "0",
    "SYSTEMD_NSS_RESOLVE_CACHE": "0",
}
"""The last two: systemd's resolver is asked through a socket in the file system, which no network namespace hides."""
PROXIES = frozenset(
    {"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy", "ws_proxy", "wss_proxy"}
)
"""In small or capital letters."""
SECRETS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"})


def offline(env: Mapping[str, str]) -> dict[str, str]:
    """`env` without proxies and without the tokens of places that a host does not ask, and with the switches set."""
    kept = {name: value for name, value in env.items() if name.lower() not in PROXIES and name not in SECRETS}
    return {**kept, **SWITCHES}
