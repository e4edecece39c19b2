"""Router, controller, keeper and host are killed with SIGKILL in turn: is any acknowledged pin lost?

Acknowledged is a pin whose response head said `new` or `kept`. Between batches everything is ended and started anew.
"""

import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from threading import Event
from typing import Literal

import psutil

from benchmarks.report import Figure
from benchmarks.sessions_ask import Ask, Said, ask, begun, until, user
from benchmarks.sessions_homeport import call, installation, kill, process
from benchmarks.words import words
from tests.e2e.installation import Homeport

Part = Literal["router", "controller", "keeper", "host"]
Moment = Literal["between turns", "while text comes", "before the first token"]

PARTS: tuple[Part, ...] = ("router", "controller", "keeper", "host")
MOMENTS: tuple[Moment, ...] = ("between turns", "while text comes", "between turns", "before the first token")
BATCH = 40
"""Kills after which all is ended and started anew."""
TARGET_S = 2.0
SETTLED_S = 31.0
"""The parent starts a router again at once that lived for 30 s, and ever later one that did not."""
FOUND_S = 90.0
"""A session that is not served within this is lost."""
LONG, SHORT = 380, 12
"""Words of a prompt: so long that a kill before its first token can be placed, and as short as may be."""


@dataclass(slots=True)
class Session:
    """One conversation of one message. `home`: where its pin was acknowledged."""

    name: str
    prompt: str
    home: str | None = None


@dataclass(slots=True)
class Tally:
    """What was done, and what came of it."""

    kills: Counter[tuple[Part, Moment]] = field(default_factory=Counter)
    back_s: list[float] = field(default_factory=list)
    """Of each router that was killed: from the kill to the next one's answer."""
    checks: int = 0
    lost: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Turns that did not end well though their router and their host lived."""
    starts: int = 1


def measure(kills: int, paced: bool) -> list[Figure]:
    """`paced`: a router is not killed before it has lived for half a minute."""
    with installation(queue="60s") as homeport:
        homeport.up()
        trial = Trial(homeport, paced)
        for number in range(kills):
            if number and number % BATCH == 0:
                print(f"  {number} kills so far, {len(trial.tally.lost)} pins lost", flush=True)
                trial.restart()
            trial.kill(number)
        trial.restart()
        trial.check_all()
    return _figures(trial, paced)


class Trial:
    """One installation, the sessions that live in it, and what befell them."""

    def __init__(self, homeport: Homeport, paced: bool) -> None:
        self.homeport = homeport
        self.tally = Tally()
        self.sessions: list[Session] = []
        self._port = homeport.ports["router"]
        self._paced = paced
        self._random = random.Random(5)
        self._router_since = time.monotonic()

    def restart(self) -> None:
        """End all of it and start it anew."""
        self._settle()
        done = self.homeport.run("down")
        if done.returncode != 0:
            raise RuntimeError(f"down: {done.stdout}{done.stderr}")
        self.homeport.up()
        self.tally.starts += 1
        self._router_since = time.monotonic()

    def kill(self, number: int) -> None:
        """The kill of this number: its part, its moment, and whether the session in it is a new one follow from it."""
        part, moment = PARTS[number % 4], MOMENTS[number // 4 % 4]
        session = self._session(number, moment)
        self._settle()
        if part == "router" and self._paced:
            time.sleep(max(0.0, self._router_since + SETTLED_S - time.monotonic()))
        if moment == "between turns":
            self._undisturbed(session)
            self._kill(part, session, moment)
        else:
            self._kill_during(part, session, moment)
        for one in (session, self._another(session)):
            self._check(one)

    def check_all(self) -> None:
        """Every session's next turn."""
        for session in self.sessions:
            self._check(session)

    def _session(self, number: int, moment: Moment) -> Session:
        """A new one in 16 kills of 32, in the others one that has a home."""
        length = LONG if moment == "before the first token" else SHORT
        known = [s for s in self.sessions if s.home and len(s.prompt.split()) == length]
        if number // 16 % 2 and known:
            return self._random.choice(known)
        session = Session(f"kill-{number}", words(f"kill-{number}", length))
        self.sessions.append(session)
        return session

    def _another(self, session: Session) -> Session:
        others = [one for one in self.sessions if one is not session and one.home]
        return self._random.choice(others) if others else session

    def _settle(self) -> None:
        """Until all four parts are there and serve."""

        def settled() -> bool:
            for part in ("router", "controller", "keeper"):
                process(self.homeport, part)
            fleet = self.homeport.get("/api/fleet")
            replicas = [r for machine in fleet["machines"] for r in machine["replicas"]]
            ready = all(r["state"] == "ready" and r["pid"] and psutil.pid_exists(r["pid"]) for r in replicas)
            return bool(replicas) and ready and bool(fleet["controller"]["reachable"])

        until(settled, 120, "all parts are there again", 0.2)

    def _undisturbed(self, session: Session) -> None:
        """A turn while all parts are there, which cannot fail."""
        said = ask(self._turn(session))
        self._acknowledge(session, said)
        if said.error is not None:
            raise RuntimeError(f"a turn with all parts there failed: {said.error}")

    def _kill_during(self, part: Part, session: Session, moment: Moment) -> None:
        going = Event()
        streams = moment == "while text comes"
        said, thread = begun(
            self._turn(session, 64 if streams else 8), lambda pieces: going.set() if pieces >= 4 else None
        )
        try:
            if streams:
                if not going.wait(60):
                    raise RuntimeError(f"no text came: {said}")
            else:
                time.sleep(self._random.uniform(0.1, 0.8))
            # What counts is what was there, not what was meant.
            self._kill(part, session, "while text comes" if said.pieces else "before the first token")
        finally:
            thread.join()
        self._acknowledge(session, said)
        if part in ("controller", "keeper") and said.error is not None:
            self.tally.broken.append(f"{part}: {said.error}")

    def _kill(self, part: Part, session: Session, moment: Moment) -> None:
        victim = self._host(session) if part == "host" else process(self.homeport, part)
        began = time.monotonic()
        kill(victim.pid)
        self.tally.kills[part, moment] += 1
        if part == "router":
            until(self._healthy, 30, "the router answers again", 0.005)
            self._router_since = time.monotonic()
            self.tally.back_s.append(self._router_since - began)

    def _host(self, session: Session) -> psutil.Process:
        """The host of the session's home; of a session that has none yet, the host that runs a turn."""
        replicas = self.homeport.replicas()
        at = next((r for r in replicas if r["name"] == session.home), None)
        if at is None:
            at = next((r for r in replicas if self.homeport.host_state(r)["running"]), replicas[0])
        return psutil.Process(at["pid"])

    def _healthy(self) -> bool:
        return call(self._port, "GET", "/health")[0] == 200

    def _turn(self, session: Session, tokens: int = 2) -> Ask:
        return Ask(self._port, session.name, user(session.prompt), tokens)

    def _acknowledge(self, session: Session, said: Said) -> None:
        if said.pin in ("new", "kept", "moved") and said.home:
            if session.home not in (None, said.home):
                self.tally.lost.append(f"{session.name}: at {said.home} instead of {session.home}")
            session.home = session.home or said.home

    def _check(self, session: Session) -> None:
        """Its next turn, asked for again until it is served: at the same home."""
        acknowledged = session.home
        deadline = time.monotonic() + FOUND_S
        said = ask(self._turn(session))
        while said.error is not None and time.monotonic() < deadline:
            time.sleep(0.2)
            said = ask(self._turn(session))
        if acknowledged is None:
            self._acknowledge(session, said)
            return
        self.tally.checks += 1
        if said.error is not None:
            self.tally.lost.append(f"{session.name}: {said.error}")
        elif (said.home, said.pin) != (acknowledged, "kept"):
            self.tally.lost.append(f"{session.name}: {said.pin} at {said.home} instead of {acknowledged}")


def _figures(trial: Trial, paced: bool) -> list[Figure]:
    tally = trial.tally
    done = "; ".join(
        f"{part} {sum(n for (who, _), n in tally.kills.items() if who == part)}" for part in PARTS
    )
    moments = "; ".join(
        f"{moment} {sum(n for (_, when), n in tally.kills.items() if when == moment)}"
        for moment in dict.fromkeys(MOMENTS)
    )
    broken = f"; turns broken though their router and host lived: {len(tally.broken)}" if tally.broken else ""
    for line in (*tally.lost, *tally.broken):
        print(f"  {line}", flush=True)
    pinned = sum(session.home is not None for session in trial.sessions)
    after = (
        "each had lived for half a minute"
        if paced
        else "killed without a pause, so with the parent's backoff"
    )
    return [
        Figure(
            "real SIGKILL of router, controller, keeper, host, between and during turns: acknowledged pins lost",
            "0 of 200 kills",
            f"{len(tally.lost)} after {sum(tally.kills.values())} kills{broken}",
            not tally.lost and not tally.broken,
            f"{done}; {moments}; {pinned} sessions on two exclusive replicas, {tally.checks} next turns after the "
            f"kills and at the end, {tally.starts} starts of everything (a keeper's successor counts a host's deaths "
            "anew, so none was given up)",
        ),
        Figure(
            "time until the router answers again after its own SIGKILL",
            f"<= {TARGET_S:.0f} s",
            f"{statistics.median(tally.back_s):.2f} s (at most {max(tally.back_s):.2f} s)",
            max(tally.back_s) <= TARGET_S,
            f"median of {len(tally.back_s)}, GET /health from the kill on; {after}",
        ),
    ]
