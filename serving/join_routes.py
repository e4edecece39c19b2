"""How machines come and go over HTTP: `GET /ca` and `POST /join` for those that know a token to join by; `POST /ray`
and `POST /leave` for those that are in.

No token travels to join or to find Ray: both sides prove that they know it (cluster/proof.py). Over TLS a machine gets
its certificate with its answer.

Decides nothing: tokens are serving/join_tokens.py's matter, names and zones serving/joining.py's.
"""

import ipaddress
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster import machine_tls
from cluster.build import build_id
from cluster.join import LOOPBACK, NOT_YET, machine_name
from cluster.paths import Paths, read_json, secret
from cluster.proof import files_token, is_proven, machine_token, proven
from serving.join_tokens import WORDS, JoinTokens, Now
from serving.joining import DEFAULT_ZONE, Ask, Cluster, Entry, Join, Known, Refused, decide
from serving.machine_book import MachineBook

BODY_BYTES_MAX = 16384
TEXT_MAX = 255
CSR_MAX = 4096
LEAVING_S = 120.0
"""For so long after all were asked to leave nobody is let in: the head is about to end."""
UP_SOON = "The head's Ray is not up yet. Ask again in a few seconds; `homeport status` on the head says more."
ENDS = "The head is being ended, with all its machines (`homeport down --all`). Join once it is up again."

Handler = Callable[[Request], Awaitable[Response]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """The body of a request to join. `boot` is empty where an earlier version asks."""

    told: Mapping[str, Any]
    """The whole of it, for which its proof holds."""
    nonce: str
    id: str
    name: str | None
    address: str
    build: str
    host_name: str
    boot: str
    csr: str | None
    """What it asks a certificate with; None: it asked in clear."""

    @classmethod
    def read(cls, body: bytes) -> "Asked":
        """Raises ValueError."""
        told = _object(body)
        for key in ("nonce", "proof", "id", "address", "build", "host_name"):
            if not isinstance(told.get(key), str) or len(told[key]) > TEXT_MAX:
                raise ValueError(f"{key} is missing or no short text")
        name = told.get("name")
        if name is not None and not isinstance(name, str):
            raise ValueError("name is no text")
        if not re.fullmatch(r"[0-9a-f]{32}", told["id"]):
            raise ValueError("id is not 32 lower-case hex digits")
        csr = told.get("csr")
        if csr is not None and (not isinstance(csr, str) or len(csr) > CSR_MAX):
            raise ValueError("csr is no short text")
        boot = str(told.get("boot", ""))[:TEXT_MAX]
        address, build, host_name = told["address"], told["build"], told["host_name"]
        return cls(told, told["nonce"], told["id"], name or None, address, build, host_name, boot, csr)


class JoinRoutes:
    """`revision` is what is wanted at present; `leave` asks every machine but the head to end its part."""

    def __init__(
        self,
        paths: Paths,
        token: str,
        book: MachineBook,
        revision: Callable[[], dict[str, Any]],
        leave: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        self._paths = paths
        self._token = token
        self._tokens = JoinTokens(paths, token)
        self._book = book
        self._revision = revision
        self._leave_all = leave
        self._boots: Callable[[], Mapping[str, str]] = dict
        self._leaving_since: float | None = None
        self._build = build_id()  # now: the sources may be replaced below a running controller

    def routes(
        self, guard: Callable[[Handler], Handler], boots: Callable[[], Mapping[str, str]]
    ) -> list[Route]:
        """`guard` lets only those pass who have the cluster's token; `boots` says of whom the keeper is heard, by the
        machine's id, and in which boot of the machine it runs."""
        self._boots = boots
        return [
            Route("/ca", self._tell_ca),
            Route("/join", self._join, methods=["POST"]),
            Route("/ray", self._tell_ray, methods=["POST"]),
            Route("/leave", guard(self._leave), methods=["POST"]),
        ]

    async def _join(self, request: Request) -> Response:
        peer = _peer(request)
        try:
            asked = Asked.read(await _body(request))
        except ValueError as error:
            return _error(400, "malformed", f"This is no request to join: {error}.")
        now = Now.here()
        key = self._tokens.find(lambda key: is_proven(key, "join", asked.told, asked.nonce), asked.id)
        verdict = self._tokens.check(key, asked.id, now)
        if verdict != "right":
            log.warning("a machine at %s may not join: %s", peer, verdict)
            return _error(401, verdict, WORDS[verdict])
        ask = Ask(
            asked.id, peer, asked.address, asked.build, machine_name(asked.host_name), asked.name, asked.boot
        )
        decision = decide(ask, self._cluster())
        if isinstance(decision, Refused):
            log.warning("a machine at %s may not join: %s", peer, decision.code)
            return _error(409, decision.code, decision.message)
        try:
            certificate = self._certify(asked, decision.address, now.wall)
        except ValueError as error:
            return _error(400, "malformed", f"This is no request to join: {error}.")
        except OSError as error:
            return _disk(error)
        if self._is_leaving():
            return _not_yet(ENDS)
        if (ray := self._ray()) is None:
            return _not_yet(UP_SOON)
        try:
            verdict = self._tokens.take(key, asked.id, now)
            if key is None or verdict != "right":
                return _error(401, verdict, WORDS[verdict])
            self._book.here(asked.id, decision.name, decision.zone, decision.address)
        except OSError as error:
            return _disk(error)
        log.info("machine %s joins from %s", decision.name, peer)
        secrets = {} if key == self._tokens.own(asked.id) else self._secrets(asked.id)
        answer = {"nonce": asked.nonce, **self._answer(decision, ray), **secrets, "certificate": certificate}
        return JSONResponse(proven(key, "joined", answer))

    async def _tell_ca(self, _request: Request) -> Response:
        """Anybody may know it: what it has signed is shown to everybody who calls."""
        if not self._speaks_tls():
            return _error(404, "no_tls", "The network of this head is declared private: nobody speaks TLS.")
        signer = machine_tls.authority(self._paths, time.time())
        return Response(signer.certificate, media_type="application/x-pem-file")

    def _speaks_tls(self) -> bool:
        return bool(self._revision()["control"].get("tls"))

    def _certify(self, asked: Asked, address: str, now: float) -> str | None:
        """This machine's certificate for the address at which it is; None where nobody speaks TLS. Raises ValueError
        for a request that is none, and OSError."""
        if not self._speaks_tls():
            return None
        if asked.csr is None:
            raise ValueError("it asks for no certificate")
        return machine_tls.certify(self._paths, asked.csr, asked.id, address, now)

    async def _tell_ray(self, request: Request) -> Response:
        try:
            told = _object(await _body(request))
        except ValueError as error:
            return _error(400, "malformed", f"This is no request: {error}.")
        nonce, machine = str(told.get("nonce")), str(told.get("id"))
        key = self._tokens.own(machine)
        if not is_proven(key, "ray", told, nonce):
            return _error(401, "token_unknown", "The token of that machine is needed.")
        ray = self._ray()
        if ray is None:
            return _not_yet(UP_SOON)
        answer = {"nonce": nonce, "ray": ray, "is_heard": machine in self._boots()}
        if (is_to_be := self._is_to_be(machine, _peer(request))) is not None:
            answer["machine"] = is_to_be
        return JSONResponse(proven(key, "ray_is", answer))

    def _is_to_be(self, machine: str, peer: str) -> dict[str, Any] | None:
        """What the config says by now of a machine that is in, as if it joined again; None where it could not, or would
        have another name: its sessions' homes have the one that it has."""
        known = self._book.remembered().get(machine)
        if known is None:
            return None
        decision = decide(Ask(machine, peer, peer, self._build, known.name), self._cluster())
        if isinstance(decision, Refused) or decision.name != known.name:
            return None
        return self._machine(decision)

    async def _leave(self, _request: Request) -> Response:
        self._leaving_since = time.monotonic()
        return JSONResponse(await self._leave_all())

    def _is_leaving(self) -> bool:
        since = self._leaving_since
        return since is not None and time.monotonic() < since + LEAVING_S

    def _secrets(self, machine: str) -> dict[str, str]:
        """For a machine that knows no more than a token to join by; another one has them."""
        own = machine_token(self._token, machine)
        files, ray = files_token(self._token), secret(self._paths.ray_token)
        return {"machine_token": own, "files_token": files, "ray_token": ray}

    def _answer(self, join: Join, ray: str) -> dict[str, Any]:
        return {"ray": ray, "machine": self._machine(join)}

    def _machine(self, join: Join) -> dict[str, Any]:
        """What a machine is told of itself. It asks from time to time whether that is still so."""
        return {
            "name": join.name,
            "zone": join.zone,
            "address": join.address,
            "reserve_cores": join.reserve_cores,
            "reserve_memory_bytes": join.reserve_memory_bytes,
            "yield_to": list(join.yield_to),
            "ports": list(self._revision().get("machine", {}).get("ports", ())),
        }

    def _cluster(self) -> Cluster:
        revision = self._revision()
        address = str(revision["control"].get("host", LOOPBACK))
        head: dict[str, Any] = read_json(self._paths.machine) or {}
        name, zone = str(head.get("name", "")), str(head.get("zone", DEFAULT_ZONE))
        return Cluster(
            head_id=str(head.get("id", "")),
            head=Known(name, zone, address),
            is_alone=ipaddress.ip_address(address).is_loopback,
            build=self._build,
            entries=tuple(map(Entry.from_json, revision.get("machines", ()))),
            known=self._book.remembered(),
            boots=self._boots(),
        )

    def _ray(self) -> str | None:
        """Where Ray's head listens; None while it does not."""
        run: dict[str, Any] = read_json(self._paths.run) or {}
        is_ready = run.get("steps", {}).get("ray", {}).get("state") == "ready"
        return str(run["ray"]) if is_ready and run.get("ray") else None


def _peer(request: Request) -> str:
    """The address that the connection comes from."""
    given = request.client.host if request.client else LOOPBACK
    mapped = getattr(ipaddress.ip_address(given), "ipv4_mapped", None)
    return str(mapped or given)


async def _body(request: Request) -> bytes:
    """Raises ValueError where it is too long, or its sender left."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                raise ValueError("it is too long")
    except ClientDisconnect:
        raise ValueError("its sender left") from None
    return body


def _object(body: bytes) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        told = json.loads(body)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(told, dict):
        raise ValueError("it is no object")
    return told


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "code": code}}, status_code=status)


def _disk(error: OSError) -> Response:
    message = f"The head's state folder cannot be written ({error.strerror}); make room on its disk."
    return _error(507, "disk", message)


def _not_yet(message: str) -> Response:
    answer = _error(503, NOT_YET, message)
    answer.headers["retry-after"] = "2"
    return answer
