"""What `homeport join` does on a machine that is to serve a head elsewhere.

Asks once itself, so that a refusal is told where somebody reads it; what heals afterwards is cluster/service.py.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster import join, mdns, tls
from cluster.announced import Several, choose
from cluster.build import ROOT, build_id
from cluster.machine import Machine
from cluster.paths import Paths, write_private
from cluster.processes import clean_environment, end, end_all, mark, ours
from cluster.restarting import UP_LOCK_FD, running, take_up_lock
from router import upgrading
from router.refused import Refused
from serving.join_tokens import TOKEN_S

ANSWER_S = 10.0
PATIENCE_S = 30.0
"""How long a head that does not answer is asked again: `ray up` may be a little ahead of it."""
AGAIN_S = 2.0
READY_S = 90.0
LOOK_S = 0.5
GRACE_S = 1.0
SEARCH_S = 3.0
"""How long the network is searched for a head. A head looks for new tokens once a second."""
SERVICE = ("-m", "cluster.service")
TOKEN = "HOMEPORT_JOIN_TOKEN"  # noqa: S105 - a variable's name
"""Where a container has its token. It is there at every start, used up after the first."""

Say = Callable[[str], None]


class NotJoined(Refused):
    """This machine is not in the cluster."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line says of a token and a name."""

    token: str | None = None
    token_file: Path | None = None
    name: str | None = None


def join_head(paths: Paths, address: str | None, given: Given, env: Mapping[str, str], say: Say) -> str:
    """Join the head at `IP` or `IP:PORT` and see that it works. Returns a line about it. Raises NotJoined and OSError.

    Without an address: the head that this machine joined before, or with a token the one that is announced in its
    network. Again is nothing, but for what the head says anew of this machine.
    """
    head = None if address is None else _url(address)
    _may_serve(paths, head)
    asked_with = _read_token(given)
    if head is None:
        head = _known_head(paths) if asked_with is None else _search(asked_with, say)
        _may_serve(paths, head)
    tokens = _tokens(paths, head, asked_with, env)
    answer = _ask(paths, tokens, given.name, say)
    head = answer.head
    before, token = join.lasting(paths), _text_of(paths.machine_token)
    machine = join.settle(paths, answer, env)
    run = running(paths)
    has_changed = (join.lasting(paths), _text_of(paths.machine_token)) != (before, token)
    has_changed = has_changed or (run is not None and upgrading.is_due(run))
    if _serve(paths, head, machine, has_changed, env):
        say(f"{machine.name}: the head lets it in; Ray is starting here")
    _wait(paths, head, machine, say)
    calls = given.name is not None and given.name != machine.name
    note = f" (its head calls it {machine.name})" if calls else ""
    return f"{machine.name} serves the head at {_text(head)}: zone {machine.zone}, address {machine.address}{note}."


def _url(address: str) -> str:
    try:
        return join.control_url(address)
    except join.JoinRefused as refused:
        raise NotJoined(str(refused), code=2) from None


def _known_head(paths: Paths) -> str:
    known = join.joined(paths)
    if known is None:
        raise NotJoined(f"There is no token to join with. {_HOW}", code=2)
    return _url(urlsplit(known.head).netloc)


def _search(token: str, say: Say) -> str:
    """The URL of the head that this token is of, as it is announced. A liar gains nothing (cluster/announced.py)."""
    fingerprint = tls.fingerprint_in(token)
    try:
        found = choose(mdns.search(fingerprint, SEARCH_S), fingerprint)
    except mdns.CannotSearch as error:
        raise NotJoined(f"This machine cannot search its network: {error}. {_BY_ADDRESS}") from None
    if found is None:
        raise NotJoined(
            "No head that this token could be of was found in this network segment. A head is announced there only "
            f"while a token can be used, {TOKEN_S / 60:.0f} minutes from `homeport join-token` on; beyond a router, or "
            f"where a firewall closes UDP port 5353, it is not heard. {_BY_ADDRESS}"
        )
    if isinstance(found, Several):
        heads = " or ".join(f"`homeport join {_text(_url(each.at))}` ({each.name})" for each in found.heads)
        raise NotJoined(
            f"Several heads were found that this token could be of. Choose, with the token: {heads}.", code=2
        )
    head = _url(found.at)
    say(f"found the head {found.name} at {_text(head)}")
    return head


def _may_serve(paths: Paths, head: str | None) -> None:
    """Raises NotJoined where this state folder does something else. `head`: None while it is to be found."""
    run = running(paths)
    if run is None:
        return
    if run.get("role") != "worker":
        mine = run.get("address") or join.LOOPBACK
        if mine != join.LOOPBACK and (
            head is None or urlsplit(head).hostname in (mine, join.local_address(head))
        ):
            raise NotJoined("This machine is the head itself and serves already. Join from another one.")
        raise NotJoined(
            "A homeport runs on this state folder by itself, or is starting. End it with `homeport down`, then join."
        )
    known = join.joined(paths)
    if head is not None and known is not None and not join.is_same(known.head, head):
        raise NotJoined(
            f"This machine serves the head at {_text(known.head)}. End that with `homeport down`, then join."
        )


def _read_token(given: Given) -> str | None:
    """The token that is given; None where none is. Raises NotJoined where there is none in its place."""
    if given.token is not None:
        return given.token.strip()
    if given.token_file is None:
        return None
    try:
        is_stdin = str(given.token_file) == "-"
        token = (sys.stdin.readline() if is_stdin else given.token_file.read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise NotJoined(f"{given.token_file}: {why}. {_HOW}", code=2) from None
    if not token:
        raise NotJoined(f"{given.token_file} is empty. {_HOW}", code=2)
    return token


def _tokens(paths: Paths, head: str, given: str | None, env: Mapping[str, str]) -> list[tuple[str, str]]:
    """What to try, best first: the head's URL and a token. Raises NotJoined where there is nothing."""
    if given is not None:
        return [(head, given)]
    known = join.joined(paths)
    tokens = [(head, text) for text in (env.get(TOKEN, "").strip(), _text_of(paths.join_token)) if text]
    # Its own token is for the head that gave it alone, and asked for in the way of that day: never in clear after TLS.
    if known is not None and join.is_same(known.head, head) and (own := join.own_token(paths)):
        tokens.append((known.head, own))
    if not tokens:
        raise NotJoined(f"There is no token to join with. {_HOW}", code=2)
    return tokens


def _ask(paths: Paths, tokens: list[tuple[str, str]], name: str | None, say: Say) -> join.Answer:
    deadline, told = time.monotonic() + PATIENCE_S, False
    *others, last = tokens
    while True:
        try:
            for head, token in others:
                try:
                    return join.ask(head, token, paths, name, ANSWER_S)
                except join.JoinRefused as refused:
                    if refused.code not in _TRY_NEXT:
                        raise
            return join.ask(*last, paths, name, ANSWER_S)
        except join.JoinRefused as refused:
            raise NotJoined(str(refused)) from None
        except join.HeadAway as away:
            if time.monotonic() > deadline:
                raise NotJoined(str(away)) from None
            if not told:
                say(f"waiting for the head: {away}")
                told = True
            time.sleep(AGAIN_S)


def _serve(paths: Paths, head: str, machine: Machine, has_changed: bool, env: Mapping[str, str]) -> bool:
    """See that a service of this version runs, with Ray as this machine is now. Hosts live on: the next keeper adopts
    them.

    Whether it was started here.
    """
    if running(paths) is not None:
        if not has_changed:
            return False
        end(ours(paths, "parent"), GRACE_S)
    lock = take_up_lock(paths)
    if lock is None:
        raise NotJoined(
            "A homeport was started on this state folder meanwhile. `homeport status` says which."
        )
    try:
        if has_changed:
            end_all(paths, "ray")
        run = {
            "role": "worker",
            "build": build_id(),
            "head": head,
            "owner": None,
            "machine": machine.to_json(),
            "address": machine.address,
            "steps": {},
            "since": time.time(),
        }
        write_private(paths.run, json.dumps(run, indent=1))
        with (paths.logs / "service.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, *SERVICE],
                env={**clean_environment(env), **mark(paths, "parent"), UP_LOCK_FD: str(lock)},
                pass_fds=(lock,),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,  # the folder in which a person stands may be deleted
                start_new_session=True,
            )
    finally:
        os.close(lock)
    return True


def _wait(paths: Paths, head: str, machine: Machine, say: Say) -> None:
    """Until the head hears this machine's keeper. Raises NotJoined where the service ends, or after READY_S."""
    deadline, told = time.monotonic() + READY_S, ""
    while True:
        run = running(paths)
        step: dict[str, Any] = (run or {}).get("steps", {}).get("ray", {})
        if step.get("state") == "ready" and _is_heard(paths, head, machine):
            return
        if run is None:
            raise NotJoined(f"The service of this machine has ended. Its log: {paths.logs / 'service.log'}")
        detail = step.get("detail") or ""
        if step.get("state") == "failed" and detail != told:
            say(f"Ray here: {detail}")
            told = detail
        if time.monotonic() > deadline:
            why = detail or "the head does not hear its keeper yet"
            raise NotJoined(
                f"{machine.name} is not ready after {READY_S:.0f} s: {why}. It goes on trying; logs: {paths.logs}"
            )
        time.sleep(LOOK_S)


def _is_heard(paths: Paths, head: str, machine: Machine) -> bool:
    told = join.ray_of(head, join.own_token(paths), machine.id, ANSWER_S, paths)
    return told is not None and told.is_heard


def _text_of(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _text(head: str) -> str:
    return urlsplit(head).netloc.removesuffix(f":{join.JOIN_PORT}")


_BY_ADDRESS = (
    "Join by the address that `homeport join-token` printed: `homeport join ADDRESS`, with the token."
)
_TRY_NEXT = ("token_unknown", "token_used", "token_expired", "needs_tls")
_HOW = "`homeport join-token` on the head makes one; give it with --token-file FILE, or - to paste it."
