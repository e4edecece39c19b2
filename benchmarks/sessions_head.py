"""The head's state folder is deleted: how soon are all pins back in the controller's index, from the journals?"""

import hashlib
import shutil
import statistics
import time

from benchmarks.report import Figure
from benchmarks.sessions_ask import until
from benchmarks.sessions_homeport import call, cluster_token, installation, machine_token
from benchmarks.streams import MODEL
from tests.e2e.installation import Homeport

TARGET_S = 5.0
AT_ONCE = 1000
"""Pins that a host is given in one request."""
SAMPLES = 50
LOOK_S = 0.02


def measure(rounds: int, pins: int) -> list[Figure]:
    """The pins lie in the journal of one host. Each round takes everything down and deletes what the head wrote."""
    with installation() as homeport:
        homeport.up()
        sessions = [hashlib.sha256(f"head-{number}".encode()).hexdigest() for number in range(pins)]
        _write(homeport, sessions)
        found = [_round(homeport, sessions) for _ in range(rounds)]
    times, back = [seconds for seconds, _ in found], min(count for _, count in found)
    median = statistics.median(times)
    return [
        Figure(
            "head's state folder deleted: pins back in the index, from the journals",
            f"all, <= {TARGET_S:.0f} s for 10,000",
            f"{back:,} of {pins:,} in {median:.1f} s (at most {max(times):.1f} s)",
            back == pins and max(times) <= TARGET_S,
            f"`down`, head/, router/, router.json and run.json deleted, `up`; from the controller's first answer to "
            f"GET /fleet until {SAMPLES} samples are there, then each of the {pins:,} asked for; median of {rounds}",
        )
    ]


def _write(homeport: Homeport, sessions: list[str]) -> None:
    """Have one host write a pin for each session."""
    until(lambda: all(r["state"] == "ready" for r in homeport.replicas()), 60, "all replicas are ready")
    replica, now = homeport.replicas()[0], time.time()
    for start in range(0, len(sessions), AT_ONCE):
        pins = [
            {
                "session": session,
                "model": MODEL,
                "replica": replica["name"],
                "generation": 1,
                "created_s": now,
                "public": f"hp_{session[:24]}",
                "scope": None,
                "family": None,
                "guessed": False,
            }
            for session in sessions[start : start + AT_ONCE]
        ]
        status, told = call(replica["port"], "POST", "/pins", {"pins": pins}, machine_token(homeport))
        if status != 200:
            raise RuntimeError(f"the host took no pins: {status} {told}")


def _round(homeport: Homeport, sessions: list[str]) -> tuple[float, int]:
    """(seconds until the samples were there, how many of all are there then)."""
    done = homeport.run("down")
    if done.returncode != 0:
        raise RuntimeError(f"down: {done.stdout}{done.stderr}")
    paths = homeport.paths
    for folder in (paths.revision.parent, paths.fleet.parent):
        shutil.rmtree(folder)
    for file in (paths.router_settings, paths.run):
        file.unlink()
    port, token = homeport.ports["control"], cluster_token(homeport)
    samples = [*sessions[:: max(1, len(sessions) // SAMPLES)], sessions[-1]]

    def there(session: str) -> bool:
        return call(port, "GET", f"/pins/{session}?model={MODEL}", token=token)[0] == 200

    starting = homeport.popen("up", "--detach", "--config", str(homeport.config))
    try:
        until(lambda: call(port, "GET", "/fleet", token=token)[0] == 200, 120, "a controller", LOOK_S)
        began = time.monotonic()
        until(lambda: all(map(there, samples)), 120, "the pins", LOOK_S)
        return time.monotonic() - began, sum(map(there, sessions))
    finally:
        starting.communicate(timeout=120)
