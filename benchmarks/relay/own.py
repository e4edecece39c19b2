"""homeport's router as it ships, with authentication, sessions, pins and metrics; and the floor."""

import hashlib
import json
import sys

from benchmarks.relay import wire
from benchmarks.relay.relays import Place, Relay, Start
from cluster.paths import write_private
from router import key_store
from serving.config_keys import KeySection
from tests.standins import model_spec

MODEL = model_spec(wire.MODEL)


def _homeport(place: Place) -> Start:
    keys, token, digest = (place.folder / name for name in ("keys.yaml", "token", "digest"))
    write_private(token, "the-cluster-token")
    write_private(digest, "a digest key")
    sha256 = hashlib.sha256(place.key.encode()).hexdigest()
    key_store.add(keys, KeySection.model_validate({"name": "bench", "sha256": sha256}))
    settings = {
        "host": "127.0.0.1",
        "port": place.port,
        "keys_file": str(keys),
        "control_url": f"http://127.0.0.1:{place.control_port}",
        "token_file": str(token),
        "digest_key_file": str(digest),
        "fleet_file": str(place.folder / "fleet.json"),
        "models": [MODEL.to_json()],
    }
    file = place.folder / "router.json"
    write_private(file, json.dumps(settings))
    return Start([sys.executable, "-m", "router.app", "--config-json", str(file)])


def _floor(place: Place) -> Start:
    return Start([sys.executable, "-m", "benchmarks.relay.bare", str(place.port), *map(str, place.hosts)])


HOMEPORT = Relay("homeport", "one process; pins, keys, session headers, metrics", _homeport)
FLOOR = Relay("floor", "two asyncio protocols on uvloop, nothing parsed; no stickiness, no keys", _floor)
