"""What the router asks of the controller and of hosts, and how their answers are read.

One question a method, over one pooled client session. Decides nothing; turns go through `relay`.
"""

import errno
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec

from cluster import tls
from router.snapshot import Resident
from serving.bearers import Bearers
from serving.model import WhenLost
from serving.pin_index import Candidate
from serving.pins import Pin, pin_from_json
from serving.standing import LOST_AFTER_S

POLL = aiohttp.ClientTimeout(total=2.0)
QUICK = aiohttp.ClientTimeout(total=0.5)
"""For questions that a turn waits for."""
WAKE = aiohttp.ClientTimeout(total=40.0, sock_connect=2.0)
"""Longer than a command that wakes a machine may run."""

KEPT = aiohttp.ClientTimeout(total=5.0, sock_connect=1.0)
"""For the texts of a conversation."""
ORDER = aiohttp.ClientTimeout(total=8.0)
"""For what the controller asks a machine in its turn."""


class NotYet(Exception):
    """The controller is there, but has not read all journals yet: whether a session is new cannot be said."""


class Unreachable(Exception):
    """No usable answer came. `refused`: nobody listens there. `untrusted`: why its certificate proves nothing."""

    def __init__(self, reason: str, refused: bool = False, untrusted: str | None = None) -> None:
        super().__init__(untrusted or reason)
        self.refused = refused
        self.untrusted = untrusted


class InLine(msgspec.Struct, frozen=True):
    """Who waits at a host: its place in the line, since when, and for how long about."""

    position: int
    session: str | None = None
    waited_s: float = 0.0
    about_s: float | None = None


class HostState(msgspec.Struct, frozen=True):
    """A host's own account of itself, `GET /state`."""

    replica: str
    incarnation: int
    state: str
    progress: float = 0.0
    detail: str = ""
    places: int = 1
    running: int = 0
    waiting: int = 0
    residents: tuple[Resident, ...] = ()
    line: tuple[InLine, ...] = ()
    pins: int = 0
    journal: str = ""
    """Another one once a pin was written or removed."""
    turns: int = 0
    tokens_generated: int = 0
    tokens_evaluated: int = 0
    memory: Any = None
    parking: Any = None
    rates: Any = None
    abilities: frozenset[str] | None = None
    """What its model can (serving/abilities.py); None: it is not loaded yet."""
    counts: Any = None
    """What it has counted (serving/counts.py)."""


class ListedForeign(msgspec.Struct, frozen=True):
    """Programs that are not the replica's and run on its CPUs. `share`: of one CPU."""

    program: str
    share: float


class ListedOnGpu(msgspec.Struct, frozen=True):
    """A process that is nobody's of homeport on a GPU of the replica. `memory_bytes`: what it holds there."""

    gpu: str
    pid: int
    program: str
    memory_bytes: int | None = None


class ListedReplica(msgspec.Struct, frozen=True, kw_only=True):
    """A replica as the controller lists it: the keeper's account."""

    name: str
    model: str
    port: int
    slot: int = 0
    address: str = ""
    state: str = "unknown"
    progress: float = 0.0
    detail: str | None = None
    stderr: tuple[str, ...] = ()
    pid: int | None = None
    incarnation: int | None = None
    config_digest: str | None = None
    slice: Any = None
    limits: Any = None
    foreign: tuple[ListedForeign, ...] = ()
    foreign_gpu: tuple[ListedOnGpu, ...] = ()


class ListedYield(msgspec.Struct, frozen=True):
    """For whom a machine is. `by`: person, or a program's name; `until`: since the epoch, where that is known."""

    by: str
    until: float | None = None


class ListedMachine(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    address: str
    state: str
    """How it stands: serving/standing.py has the words."""
    cordoned: bool = False
    """Whether it takes no new pins."""
    unlisted: bool = False
    """Whether it was on Ray's list and is no longer."""
    wakes: bool = False
    """Whether the config says how it is woken."""
    power: str = ""
    """What of sleep and staying awake is not done there, and why."""
    draining: Any = None
    """Of one that is drained: its deadline, since the epoch, and how far it is; serving/draining.py has the words."""
    heard_s: float | None = None
    """Of one that is away: when its keeper was heard last, since the epoch; None: not since the controller began."""
    yielded: ListedYield | None = None
    id: str = ""
    zone: str = "default"
    revision: int = 0
    """What it serves is of this revision."""
    hardware: Any = None
    reserve: Any = None
    gpus: Any = None
    """Those of its slices that do not work, as its keeper sees it now: {uuid: {"state", "reason"}}."""
    models: Any = None
    """What it has and gets from Hugging Face, as its keeper reports (serving/model_store.py)."""
    bench: Any = None
    """What `homeport bench machine` measured there last (serving/machine_figures.py)."""
    replicas: tuple[ListedReplica, ...] = ()


class ListedModel(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    context: int
    engine: str
    when_lost: WhenLost = "wait"


class ForgottenMachine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that is gone for good. `zone`: where its sessions may go; None: not told."""

    id: str
    name: str
    zone: str | None = None


class ListedFleet(msgspec.Struct, frozen=True, kw_only=True):
    """The controller's account of the cluster, `GET /fleet`."""

    revision: int = 0
    models: tuple[ListedModel, ...] = ()
    machines: tuple[ListedMachine, ...] = ()
    forgotten: tuple[ForgottenMachine, ...] = ()
    lost_after_s: float = LOST_AFTER_S
    problems: Any = None
    """Models that are left out, and why, by machine."""


@dataclass(frozen=True, slots=True)
class KnownPin:
    """A pin as the controller or a host tells it. `facts` has all of it, for whom it is handed on to."""

    pin: Pin
    facts: Mapping[str, Any]

    @property
    def scope(self) -> str | None:
        """Whose session it is, where that is known."""
        return self._text("scope")

    @property
    def state(self) -> str | None:
        return self._text("state")

    def _text(self, name: str) -> str | None:
        value = self.facts.get(name)
        return value if isinstance(value, str) else None


class _Claimed(msgspec.Struct, frozen=True):
    pin: dict[str, Any]
    known: bool


_HOST_STATE = msgspec.json.Decoder(HostState)
_FLEET = msgspec.json.Decoder(ListedFleet)
_CLAIMED = msgspec.json.Decoder(_Claimed)


def read_fleet(text: bytes) -> ListedFleet:
    """Raises msgspec.DecodeError for anything that is not a fleet."""
    return _FLEET.decode(text)


class Peers:
    """All methods raise Unreachable when no usable answer comes in time. `base` is a host's `http://address:port`, or
    https, and `token` the cluster's: a host gets its machine's, which is made from it."""

    def __init__(self, client: aiohttp.ClientSession, control_url: str, token: str) -> None:
        self._client = client
        self.bearers = Bearers(token, control_url.startswith("https:"))
        self._control = control_url.rstrip("/")
        self._of_pins = (f"{self._control}/claim", f"{self._control}/pins/")
        self._router = uuid.uuid4().hex
        """What the controller knows this process by."""
        self._headers = {"authorization": f"Bearer {token}"}

    async def fleet(self) -> bytes:
        """The controller's fleet as it was sent, for `read_fleet`: it seldom changes."""
        return await self._get(f"{self._control}/fleet", POLL) or b""

    async def state(self, base: str) -> HostState:
        text = await self._get(f"{base}/state", POLL) or b""
        try:
            return _HOST_STATE.decode(text)
        except msgspec.DecodeError as error:
            raise Unreachable(f"its state cannot be read: {error}") from error

    async def metrics(self, base: str | None = None, **query: str) -> bytes | None:
        """What a host tells Prometheus; without `base` the controller, with `keepers` also all that keepers told it,
        with `keeper` that machine's alone. None: it does not know what that is."""
        return await self._get(f"{base or self._control}/metrics", POLL, query)

    async def claim(
        self,
        session: str,
        model: str,
        order: Sequence[Candidate],
        refused: Iterable[str],
        instead_of: Pin | None = None,
        child: bool = False,
    ) -> tuple[Pin, bool]:
        """The session's pin, and whether it existed before. The controller settles races.

        `instead_of`: the pin whose home is lost; if it still holds, there is a new one of the next generation.
        `child`: it may go nowhere but to its parent's home.
        """
        ranked = [{"replica": candidate.replica, "free": candidate.free} for candidate in order]
        asked: dict[str, Any] = {"session": session, "model": model, "ranked": ranked}
        asked |= {"refused": sorted(refused), "router": self._router, "child": child}
        if instead_of is not None:
            asked["instead_of"] = {"replica": instead_of.replica, "generation": instead_of.generation}
        text = await self._ask("POST", f"{self._control}/claim", QUICK, msgspec.json.encode(asked))
        try:
            claimed = _CLAIMED.decode(text or b"")
            return pin_from_json(claimed.pin), claimed.known
        except (msgspec.DecodeError, ValueError) as error:
            raise Unreachable(f"its claim cannot be read: {error}") from error

    async def indexed_pin(self, session: str, model: str, written: bool = False) -> Pin | None:
        """What the controller's index has; `session` may be a public id. `written`: only what a journal has."""
        found = await self.indexed(session, model)
        if found is None or (written and found.facts.get("confirmed") is False):
            return None
        return found.pin

    async def host_pin(self, base: str, session: str, model: str) -> Pin | None:
        found = await self.at_host(base, session, model)
        return None if found is None else found.pin

    async def indexed(self, session: str, model: str) -> KnownPin | None:
        """As `indexed_pin`, with what is told beside the pin."""
        return await self._pin(self._control, session, model)

    async def at_host(self, base: str, session: str, model: str) -> KnownPin | None:
        return await self._pin(base, session, model)

    async def find(self, base: str, histories: Sequence[str], model: str, scope: str) -> KnownPin | None:
        """The guessed session of that host whose history is the first of `histories` that any has."""
        asked = {"histories": list(histories), "model": model, "scope": scope}
        return _known_pin(await self._ask("POST", f"{base}/pins/find", QUICK, msgspec.json.encode(asked)))

    async def learn(self, base: str | None, pins: Sequence[Mapping[str, Any]]) -> list[Pin]:
        """Tell a host (None: the controller) of pins; those that hold from now on, if it says so."""
        data = msgspec.json.encode({"pins": list(pins)})
        text = await self._ask("POST", f"{base or self._control}/pins", POLL, data)
        try:
            told = msgspec.json.decode(text or b"{}", type=dict[str, Any]).get("pins", ())
            return [pin_from_json(pin) for pin in told if isinstance(pin, dict)]
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            raise Unreachable(f"its pins cannot be read: {error}") from error

    async def end(self, base: str, session: str, model: str) -> None:
        """Have a host forget a session; nothing where it knows none."""
        await self._ask("DELETE", f"{base}/pins/{session}", POLL, None, {"model": model})

    async def ended(self, session: str, model: str, took_s: float) -> None:
        """Have the controller forget a session that its hosts have ended, which began `took_s` ago."""
        data = msgspec.json.encode({"took_s": took_s})
        await self._ask("DELETE", f"{self._control}/pins/{session}", POLL, data, {"model": model})

    async def disown(self, pin: Pin) -> None:
        """Have the controller forget this very pin, which the host of its home does not have."""
        data, url = msgspec.json.encode({"only": pin.to_json()}), f"{self._control}/pins/{pin.session}"
        await self._ask("DELETE", url, QUICK, data, {"model": pin.model})

    async def manage(self, machine: str, act: str, told: Mapping[str, Any] | None = None) -> tuple[int, str]:
        """Have the controller `forget`, `cordon`, `uncordon`, `drain` or `yield` a machine: its status, and what it
        says."""
        url = f"{self._control}/machines/{quote(machine, safe='')}/{act}"
        body, limits = (None, POLL) if told is None else (msgspec.json.encode(told), ORDER)
        try:
            async with self._client.post(url, data=body, headers=self._headers, timeout=limits) as answer:
                return answer.status, _message(await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(type(error).__name__, connection_refused(error)) from error

    async def wake(self, machine: str) -> tuple[int, dict[str, Any]]:
        """Have the controller wake a machine: its status, and what it says. It may take as long as a command takes."""
        url = f"{self._control}/machines/{quote(machine, safe='')}/wake"
        try:
            async with self._client.post(url, headers=self._headers, timeout=WAKE) as answer:
                return answer.status, msgspec.json.decode(await answer.read(), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise Unreachable(f"its answer cannot be read: {error}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(type(error).__name__, connection_refused(error)) from error

    async def host_pins(self, base: str) -> list[dict[str, Any]]:
        """All pins of one host as it tells them, with what it adds to a pin."""
        return self._pins(await self._get(f"{base}/pins", POLL))

    async def indexed_pins(self, replica: str) -> list[dict[str, Any]]:
        """Of the pins whose home is this replica what the controller knows, be its machine there or not."""
        return self._pins(await self._get(f"{self._control}/pins", POLL, {"replica": replica}))

    @staticmethod
    def _pins(text: bytes | None) -> list[dict[str, Any]]:
        try:
            return msgspec.json.decode(text or b"", type=dict[str, list[dict[str, Any]]])["pins"]
        except (msgspec.DecodeError, KeyError) as error:
            raise Unreachable(f"its pins cannot be read: {error}") from error

    async def kept(
        self, method: str, base: str, path: str, body: bytes | None = None, **query: str
    ) -> bytes | None:
        """What a host keeps of sessions (serving/kept_routes.py); None: nothing of that kind."""
        return await self._ask(method, f"{base}/kept/{path}", KEPT, body, query)

    async def _pin(self, base: str, session: str, model: str) -> KnownPin | None:
        return _known_pin(await self._get(f"{base}/pins/{session}", QUICK, {"model": model}))

    async def _get(
        self, url: str, limits: aiohttp.ClientTimeout, query: dict[str, str] | None = None
    ) -> bytes | None:
        return await self._ask("GET", url, limits, None, query)

    async def _ask(
        self,
        method: str,
        url: str,
        limits: aiohttp.ClientTimeout,
        body: bytes | None,
        query: dict[str, str] | None = None,
    ) -> bytes | None:
        """The answer's bytes; None for 404."""
        base = _base(url)
        asked = self._headers if base == self._control else {"authorization": self.bearers.of(base)}
        headers = asked if body is None else {**asked, "content-type": "application/json"}
        try:
            async with self._client.request(
                method, url, data=body, params=query, headers=headers, timeout=limits
            ) as answer:
                if answer.status == 404:
                    return None
                if answer.status == 503 and url.startswith(self._of_pins):
                    raise NotYet
                if answer.status != 200:
                    raise Unreachable(f"it answered {answer.status}")
                return await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(
                type(error).__name__, connection_refused(error), _untrusted(error, url)
            ) from error


def _base(url: str) -> str:
    """`scheme://address:port` of a URL."""
    return url[: url.find("/", url.find("//") + 2)]


def _untrusted(error: BaseException, url: str) -> str | None:
    """What is wrong with the certificate there; None for an error of another kind."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return tls.why(cause, f"what answers at {_base(url)}")


def _known_pin(text: bytes | None) -> KnownPin | None:
    if text is None:
        return None
    try:
        facts = msgspec.json.decode(text, type=dict[str, Any])
        return KnownPin(pin_from_json(facts), facts)
    except (msgspec.DecodeError, ValueError) as error:
        raise Unreachable(f"its pin cannot be read: {error}") from error


def _message(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body, type=dict[str, Any])["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""


def connection_refused(error: BaseException) -> bool:
    """Whether nobody listened: nothing of the request can have been read."""
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return isinstance(inner, OSError) and inner.errno == errno.ECONNREFUSED
