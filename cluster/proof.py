"""How a machine and its head show each other that they know the same token, which never travels. Pure.

Who asks makes a fresh nonce; the ask and the answer both have it, and a proof over everything that they say. So an ask
tells a stranger nothing to ask with elsewhere, and what a stranger answers, or answered before, proves nothing. The key
is the token's digest, since of a token for one machine the head keeps no more. Nothing is hidden here: an answer to a
first join has secrets in it, which TLS hides (cluster/tls.py), or a network that is declared private.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any, Literal

Purpose = Literal["join", "joined", "ray", "ray_is"]
"""What is said; `joined` answers `join`, `ray_is` answers `ray`. A proof of one is none of another."""


def key_of(token: str) -> str:
    """The SHA-256 of a token, as hex."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def machine_token(secret: str, machine: str) -> str:
    """The token of one machine, by its id: who has it can neither work out the cluster's secret nor another's token."""
    return hmac.new(secret.encode(), f"machine:{machine}".encode(), hashlib.sha256).hexdigest()


def files_token(secret: str) -> str:
    """With which machines get models from each other. It opens nothing else."""
    return hmac.new(secret.encode(), b"files", hashlib.sha256).hexdigest()


def proven(key: str, purpose: Purpose, told: Mapping[str, Any]) -> dict[str, Any]:
    """`told`, which can be said in JSON, with its proof under `proof`."""
    return {**told, "proof": _proof(key, purpose, told)}


def is_proven(key: str, purpose: Purpose, told: object, nonce: str) -> bool:
    """Whether who said this for this purpose, with this nonce, knows the key. Whatever `told` is, it raises nothing."""
    if not isinstance(told, Mapping) or told.get("nonce") != nonce:
        return False
    given, said = told.get("proof"), {name: value for name, value in told.items() if name != "proof"}
    try:
        right = _proof(key, purpose, said)
    except (ValueError, TypeError, RecursionError):
        return False
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), right.encode())


def _proof(key: str, purpose: Purpose, told: Mapping[str, Any]) -> str:
    """HMAC-SHA256 over the one way to write this as JSON."""
    text = json.dumps([purpose, told], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()
