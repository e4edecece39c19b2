"""What the controller answers over HTTP: to routers, which never import Ray, and only with the cluster's token."""

import hmac
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.clocks import DayClock
from serving.drain_plan import LONGEST_DRAIN_S
from serving.join_routes import JoinRoutes
from serving.machine_book import NoMachine, NotForgotten
from serving.metrics_routes import MetricsRoutes
from serving.model_files import hub_source
from serving.model_giving import is_place
from serving.pin_index import Candidate, Lost, PinIndex
from serving.pins import Pin, is_session, pin_from_json
from serving.wake_machine import NotWoken
from serving.yielding import wanted_yield


@dataclass(frozen=True, slots=True)
class Acts:
    """What the app has done, and asks."""

    fleet: Callable[[], bytes]
    """The fleet as JSON."""
    has_learned: Callable[[], bool]
    """Whether a session that the index does not know is new."""
    forget: Callable[[str], None]
    """A machine, by its name. Raises NotForgotten and OSError."""
    cordon: Callable[[str, bool], None]
    """Let a machine take no new pins, or take them again. Raises NoMachine and OSError."""
    yield_machine: Callable[[str, float | None, bool], Awaitable[dict[str, Any]]]
    """Let a machine be its person's for so many seconds (None: until told otherwise), or, where True, end that. How it
    stands then. Raises NoMachine and MachineAway."""
    ended: Callable[[Mapping[str, Pin]], Awaitable[None]]
    """A session was ended: what the journals say that are still to hear of it."""
    is_there: Callable[[str], bool]
    """Whether a replica serves."""
    takes_new: Callable[[str], bool]
    """Whether sessions may get a home at a replica."""
    pull: Callable[[str, Any], list[str]]
    """Let machines (`all`, names or {"zone"}) get a model from Hugging Face: the names of those that are here. Raises
    OSError."""
    wake: Callable[[str], Awaitable[dict[str, Any]]]
    """A machine, by its name. Raises NotWoken."""
    boots: Callable[[], dict[str, str]]
    """Of the machines that are heard, by id: which boot of each its keeper runs in; empty where it did not say."""
    zone_of: Callable[[str], str | None]
    """The zone of a replica's machine, forgotten ones too; None for a machine that was never here."""
    drain: Callable[[str, float], None]
    """Let a machine be empty in so many seconds. Raises NoMachine and OSError."""


class MachineAway(Exception):
    """The machine is known and cannot be asked. The message says what to do."""


class ControllerApp:
    """`joining` lets machines in; `clock` tells when the index heard of something."""

    def __init__(
        self,
        token: str,
        index: PinIndex,
        acts: Acts,
        joining: JoinRoutes,
        clock: DayClock | None = None,
        metrics: MetricsRoutes | None = None,
    ) -> None:
        self._expected = f"Bearer {token}".encode()
        self._index = index
        self._acts = acts
        self._joining = joining
        self._clock = clock or DayClock()
        self._metrics = metrics

    def asgi(self) -> Starlette:
        """GET /fleet; POST /claim; GET and DELETE /pins/{session or public id}; GET /pins?replica=; POST /pins; POST
        /machines/{name}/forget, cordon, uncordon, drain, yield and wake; POST /models/pull; and what
        serving/join_routes.py and serving/metrics_routes.py answer."""
        return Starlette(
            routes=[
                Route("/fleet", self._guard(self._get_fleet)),
                Route("/claim", self._guard(self._claim), methods=["POST"]),
                Route("/pins", self._guard(self._pins_of), methods=["GET"]),
                Route("/pins", self._guard(self._take_in), methods=["POST"]),
                Route("/pins/{name}", self._guard(self._pin), methods=["GET"]),
                Route("/pins/{name}", self._guard(self._end), methods=["DELETE"]),
                Route("/machines/{name}/forget", self._guard(self._forget_machine), methods=["POST"]),
                Route("/machines/{name}/cordon", self._guard(self._cordon_machine), methods=["POST"]),
                Route("/machines/{name}/uncordon", self._guard(self._uncordon_machine), methods=["POST"]),
                Route("/machines/{name}/yield", self._guard(self._yield_machine), methods=["POST"]),
                Route("/models/pull", self._guard(self._pull), methods=["POST"]),
                Route("/machines/{name}/wake", self._guard(self._wake_machine), methods=["POST"]),
                Route("/machines/{name}/drain", self._guard(self._drain_machine), methods=["POST"]),
                *self._joining.routes(self._guard, self._acts.boots),
                *(self._metrics.routes(self._guard) if self._metrics is not None else ()),
            ]
        )

    def _guard(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, self._expected):
                return _error(401, "The cluster's token is needed.")
            answer: Response = await handler(request)
            return answer

        return guarded

    async def _get_fleet(self, _request: Request) -> Response:
        return Response(self._acts.fleet(), media_type="application/json")

    async def _claim(self, request: Request) -> Response:
        try:
            body = await request.json()
            ranked = [Candidate(str(c["replica"]), int(c["free"])) for c in body["ranked"]]
            session, model, refused = body["session"], str(body["model"]), frozenset(body.get("refused", ()))
            router, lost = str(body.get("router", "")), body.get("instead_of")
            instead_of = None if lost is None else Lost(str(lost["replica"]), int(lost["generation"]))
            if not is_session(session) or (instead_of is not None and instead_of.generation < 1):
                raise ValueError("a session is 64 lower-case hex digits, a generation counts from 1")
        except (ValueError, KeyError, TypeError) as error:
            return _error(400, f"Not a claim: {error}")
        if not ranked:
            return _error(400, "A claim needs a candidate.")
        if not self._acts.has_learned():
            return _not_yet()
        ranked = [each for each in ranked if not self._index.is_ending(session, model, each.replica)]
        if not body.get("child"):  # A child has its home where its parent's is.
            ranked = [each for each in ranked if self._acts.takes_new(each.replica)]
        ranked = self._in_its_zone(ranked, session, model, instead_of)
        held = self._index.get(session, model)
        if not ranked and held is None:
            return _not_yet()
        if not ranked and held is not None:
            return JSONResponse({"pin": held.to_json(), "known": (session, model) not in self._index.claims})
        if instead_of is not None and self._acts.is_there(instead_of.replica):
            instead_of = None  # That one router cannot reach it is no loss.
        now = self._clock.steady()
        pin, known = self._index.claim(
            session, model, ranked, refused, now, instead_of, router, self._clock.latest()
        )
        return JSONResponse({"pin": pin.to_json(), "known": known})

    def _in_its_zone(
        self, ranked: list[Candidate], session: str, model: str, instead_of: Lost | None
    ) -> list[Candidate]:
        """Of a session that has begun, those in its home's zone: a router's picture may be old, or it may not know that
        there was a home before the one that it has given up."""
        home = self._index.pins.get((session, model)) or instead_of
        if home is None:
            return ranked
        zone = self._acts.zone_of(home.replica)
        return [each for each in ranked if zone is not None and self._acts.zone_of(each.replica) == zone]

    async def _take_in(self, request: Request) -> Response:
        """Pins that a router saw a host write down."""
        try:
            told = (await request.json())["pins"]
            pins = [pin_from_json(each) for each in told]
            names = [(str(each.get("public") or ""), each.get("scope")) for each in told]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            return _error(400, f"Not a list of pins: {error}")
        for pin, (public, scope) in zip(pins, names, strict=True):
            self._index.confirm([pin], pin.replica, now=self._clock.steady())
            self._index.describe(pin.session, public, scope)
        winners = (self._index.get(pin.session, pin.model) or pin for pin in pins)
        return JSONResponse({"pins": [self._told(pin) for pin in winners]})

    async def _pins_of(self, request: Request) -> Response:
        """Those whose home is one replica, also of a machine that is away."""
        replica = request.query_params.get("replica", "")
        pins = [pin for pin in self._index.pins.values() if pin.replica == replica]
        return JSONResponse({"pins": [self._told(pin) for pin in pins]})

    async def _pin(self, request: Request) -> Response:
        pin = self._find(request)
        if pin is None and not self._acts.has_learned():
            return _not_yet()
        if pin is None:
            return _error(404, "No such pin.")
        return JSONResponse(self._told(pin))

    async def _end(self, request: Request) -> Response:
        """Its home is told by whoever asks; other hosts that had it once are told from here. In the body, `took_s`: for
        how long the end has been under way; `only`: a pin that its host does not have, so that no other one ends."""
        try:
            body = dict(json.loads(await request.body() or b"{}"))
            only = pin_from_json(body["only"]) if "only" in body else None
            since = self._clock.steady() - float(body["took_s"]) if "took_s" in body else math.inf
        except (ValueError, KeyError, TypeError) as error:
            return _error(400, f"Not an end: {error}")
        pin = only or self._find(request)
        if pin is None:
            return JSONResponse({"ended": False})
        index = self._index
        journals = index.disown(only) if only else index.remove(pin.session, pin.model, since)
        await self._acts.ended({name: said for name, said in journals.items() if name != pin.replica})
        return JSONResponse({"ended": only is None or bool(journals)})

    async def _pull(self, request: Request) -> Response:
        """`source`: hf:OWNER/REPO:FILE or hf:OWNER/REPO; `machines`: all, names, or {"zone": NAME}."""
        try:
            body = dict(await request.json())
            source, machines = str(body["source"]), body.get("machines", "all")
            if hub_source(source) is None or not is_place(machines):
                raise ValueError("it names no source on Hugging Face, or no machines")
        except (ValueError, KeyError, TypeError) as error:
            return _error(400, f"Not a pull: {error}")
        try:
            return JSONResponse({"source": source, "machines": self._acts.pull(source, machines)})
        except OSError as error:
            return _error(507, _no_room(error))

    async def _forget_machine(self, request: Request) -> Response:
        try:
            self._acts.forget(request.path_params["name"])
        except NotForgotten as error:
            return _error(409 if error.known else 404, str(error))
        except OSError as error:
            return _error(507, _no_room(error))
        return JSONResponse({"forgotten": request.path_params["name"]})

    async def _cordon_machine(self, request: Request) -> Response:
        return self._be_cordoned(request.path_params["name"], True)

    async def _uncordon_machine(self, request: Request) -> Response:
        return self._be_cordoned(request.path_params["name"], False)

    async def _yield_machine(self, request: Request) -> Response:
        name = request.path_params["name"]
        try:
            for_s, ends = wanted_yield(json.loads(await request.body() or b"{}"))
        except (ValueError, RecursionError) as error:
            return _error(400, str(error))
        try:
            return JSONResponse(await self._acts.yield_machine(name, for_s, ends))
        except NoMachine as error:
            return _error(404, str(error))
        except MachineAway as error:
            return _error(503, str(error))

    async def _wake_machine(self, request: Request) -> Response:
        try:
            return JSONResponse(await self._acts.wake(request.path_params["name"]))
        except NotWoken as error:
            return _error(error.status, str(error))

    def _be_cordoned(self, name: str, is_cordoned: bool) -> Response:
        try:
            self._acts.cordon(name, is_cordoned)
        except NoMachine as error:
            return _error(404, str(error))
        except OSError as error:
            return _error(507, _no_room(error))
        return JSONResponse({"machine": name, "cordoned": is_cordoned})

    async def _drain_machine(self, request: Request) -> Response:
        """In the body, `within_s`: by when it is to be empty."""
        name = request.path_params["name"]
        try:
            within_s = float(dict(json.loads(await request.body() or b"{}"))["within_s"])
            if not 0 <= within_s <= LONGEST_DRAIN_S:
                raise ValueError(f"within_s is 0 to {LONGEST_DRAIN_S:g}")
        except (ValueError, KeyError, TypeError) as error:
            return _error(400, f"Not a drain: {error}")
        try:
            self._acts.drain(name, within_s)
        except NoMachine as error:
            return _error(404, str(error))
        except OSError as error:
            return _error(507, _no_room(error))
        return JSONResponse({"machine": name, "within_s": within_s})

    def _find(self, request: Request) -> Pin | None:
        name, model = request.path_params["name"], request.query_params.get("model", "")
        session = name if is_session(name) else self._index.sessions.get(name)
        return None if session is None else self._index.get(session, model)

    def _told(self, pin: Pin) -> dict[str, object]:
        public, scope = self._index.names.get(pin.session, ("", None))
        confirmed = (pin.session, pin.model) not in self._index.claims
        return {**pin.to_json(), "public": public, "scope": scope, "confirmed": confirmed}


def _no_room(error: OSError) -> str:
    return f"The head's state folder cannot be written ({error}); make room on its disk."


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status_code=status)


def _not_yet() -> Response:
    message = "The controller has not read all journals yet. Ask again in a second."
    return JSONResponse({"error": {"message": message}}, status_code=503, headers={"retry-after": "1"})
