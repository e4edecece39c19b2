"""What `homeport join --head LIST` does on the first machine of a list of Ray's: make it the head of a cluster.

Starting is router/lifecycle.py's matter; setting the other machines up is Ray's.
"""

import ipaddress
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from cluster import machine_tls
from cluster.paths import Paths, secret, write_private
from cluster.restarting import running
from cluster.tls import MARK
from router import api_client, following, lifecycle, live, renewing, upgrading
from router.apply_words import patience_lines
from router.lifecycle import Prepared, UpRefused
from serving.standing import AWAY

RAYS_STATE = Path("/tmp/ray")  # noqa: S108 - it is where Ray keeps it
SETTING_UP = "is being set up by Ray; `homeport status` shows it once it is there"
WORDS = {
    "waiting-for-ssh": "does not answer over SSH: is it off? Ray goes on trying",
    "update-failed": "could not be set up; Ray tries again. `ray monitor LIST` on your own machine shows its words",
    "up-to-date": "is set up by Ray and not here yet; `homeport status` shows it once it is",
}
"""What Ray says of a machine that has not joined."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class MachineList:
    """What is ours in Ray's file."""

    path: Path
    cluster: str
    head: str
    workers: tuple[str, ...]
    user: str | None = None
    """Who is let in over SSH; None: it is not said."""
    key: str | None = None


def read_list(path: Path) -> MachineList:
    """Read Ray's machine list (provider `local`). Raises UpRefused, which names the remedy."""

    def refuse(problem: str, remedy: str = "configs/cluster.yaml shows one") -> UpRefused:
        return UpRefused(f"{path}: {problem}. {remedy}.")

    try:
        told = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise refuse(error.strerror or str(error), "Give the path of Ray's machine list") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise refuse("it is no YAML", "Give the path of Ray's machine list") from None
    provider = told.get("provider") if isinstance(told, dict) else None
    if not isinstance(provider, dict) or not isinstance(provider.get("head_ip"), str):
        raise refuse("it has no provider.head_ip, the address of the head")
    workers = provider.get("worker_ips") or []
    if not isinstance(workers, list) or not all(isinstance(each, str) for each in workers):
        raise refuse("provider.worker_ips is no list of addresses")
    for address in (provider["head_ip"], *workers):
        if not _is_address(address):
            raise refuse(
                f"{address} is not an address that other machines reach", "Write each machine's IPv4 address"
            )
    auth = told.get("auth")
    user, key = (
        (auth.get(name) for name in ("ssh_user", "ssh_private_key"))
        if isinstance(auth, dict)
        else (None, None)
    )
    return MachineList(
        path,
        str(told.get("cluster_name", "default")),
        provider["head_ip"],
        tuple(workers),
        user if isinstance(user, str) else None,
        key if isinstance(key, str) else None,
    )


def make_head(
    paths: Paths,
    listed: MachineList,
    config: Path,
    env: Mapping[str, str],
    say: Say,
    *,
    allow_script: bool = False,
) -> int:
    """Start a head here, give a running one its list and its config, or take over from one of another version. Returns
    the exit code.

    Raises UpRefused and ConfigError; following.Ended where a signal asked for the end: what was started here is ended
    then, and what ran before goes on.
    """
    here = own_addresses()
    if listed.head not in here:
        raise UpRefused(
            f"{listed.path}: the head is {listed.head}, and this machine is {', '.join(here) or 'in no network'}. Run "
            "it on the head, or correct provider.head_ip."
        )
    prepared = lifecycle.prepare(paths, config, env, listed.head, allow_script=allow_script)
    lock = lifecycle.take_up_lock(paths)
    if lock is None:
        run: dict[str, Any] = running(paths) or {}
        renewal = _compare(paths, run, listed, prepared)
        if upgrading.is_due(run):
            say(upgrading.words(run))
            _make_token(paths, lifecycle.speaks_tls(prepared.config, prepared.machine))
            lock = upgrading.take_over(paths, say)
            parent = lifecycle.start(paths, prepared, env, None, lock, listed.path, say)
            code = following.follow(paths, parent, detach=True, takes_over=True)
        else:
            _renew(paths, run, renewal, listed, say)
            code = 0
    else:
        try:
            lifecycle.leave_former_cluster(paths)
            if _make_token(paths, lifecycle.speaks_tls(prepared.config, prepared.machine)):
                _forget_set_up(listed)
            parent = lifecycle.start(paths, prepared, env, os.getpid(), lock, listed.path, say)
        except following.Ended:
            following.end(paths)
            raise
        code = following.follow(paths, parent, detach=True)
    if code == 0:
        for line in describe(listed, _machines(paths), _rays_words(listed)):
            say(line)
    return code


def describe(listed: MachineList, machines: list[dict[str, Any]], rays_words: Mapping[str, str]) -> list[str]:
    """A line for each machine that is here, and for each of the list that is not."""

    def stands(machine: dict[str, Any]) -> str:
        words = WORDS.get(rays_words.get(machine["address"], "")) if machine["state"] in AWAY else None
        return f"zone {machine['zone']}, {machine['state']}{f': {words}' if words else ''}"

    rows = [(each["name"], each["address"], stands(each)) for each in machines]
    here = {each["address"] for each in machines}
    rows += [
        (address, "", WORDS.get(rays_words.get(address, ""), SETTING_UP))
        for address in (listed.head, *listed.workers)
        if address not in here
    ]
    notes = [live.unlisted_text(each["name"]) for each in machines if each.get("unlisted")]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return [
        f"  {name:<{widths[0]}}  {address:<{widths[1]}}  {words}" for name, address, words in rows
    ] + notes


def own_addresses() -> list[str]:
    """This machine's IPv4 addresses that others may reach."""
    found = {each.address for interface in psutil.net_if_addrs().values() for each in interface}
    return sorted(filter(_is_address, found))


def _compare(paths: Paths, run: dict[str, Any], listed: MachineList, prepared: Prepared) -> renewing.Renewal:
    """The config beside that of a head which runs. Raises UpRefused where it cannot have these."""
    if run.get("role") == "worker":
        raise UpRefused(
            "This machine serves a head elsewhere. End that with `homeport down`, then try again.", 1
        )
    if run.get("address") != listed.head:
        where = run.get("address") or "another address"
        raise UpRefused(
            f"A homeport runs here at {where}, and the list says {listed.head}. End it with `homeport down`, then try "
            "again.",
            1,
        )
    renewal = renewing.compare(paths, run, prepared)
    if changed := [key for key in ("network.control", "network.private") if key in renewal.later]:
        raise UpRefused(
            f"{changed[0]} has changed, and every machine knows the old one. Run `homeport down --all`, then try "
            "again.",
            1,
        )
    return renewal


def _renew(
    paths: Paths, run: dict[str, Any], renewal: renewing.Renewal, listed: MachineList, say: Say
) -> None:
    """Give a running head its list, and a revision where the config has changed."""
    _make_token(paths, lifecycle.speaks_tls(renewal.config, renewal.machine))
    lifecycle.give_list(paths, listed.path)
    renewing.renew(paths, renewal)
    following.say_running(run)
    if renewal.is_new:
        say(f"The config has changed: models are being changed to revision {renewal.wanted['revision']}.")
    elif not renewal.later:
        say("It serves what the config says; nothing is to be changed.")
    if renewal.later:
        say(
            "What it says of router, ports and this machine holds after `homeport down` and this command again: "
            f"{', '.join(renewal.later)}."
        )
    for line in patience_lines(renewal.config.models, renewal.config.router.limits.first_token_s):
        say(line)
    if renewal.wanted["machines"] != renewal.before.get("machines"):
        say(
            "Machines that are in already take a new zone or reserve by themselves, within half a minute; a new name "
            "after `homeport join` there, with the head's address."
        )


def _make_token(paths: Paths, speaks_tls: bool) -> bool:
    """The token that Ray carries to the machines of the list: with what they know the head by, where it speaks TLS.
    Whether it is another one than before."""
    paths.join_token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_new = not paths.join_token.exists()
    bare = secret(paths.join_token).partition(MARK)[0]
    token = machine_tls.pinned(paths, bare, speaks_tls=speaks_tls, now=time.time())
    if token != secret(paths.join_token):
        write_private(paths.join_token, token)
        is_new = True
    return is_new


def _forget_set_up(listed: MachineList) -> None:
    """Have Ray set all machines of the list up again: it brings what they synchronise only then. Not while it runs."""
    _rays_notes(listed).unlink(missing_ok=True)


def _machines(paths: Paths) -> list[dict[str, Any]]:
    try:
        fleet = api_client.ask_control(paths, "GET", "/fleet")
        return list(fleet["machines"])
    except (api_client.Away, api_client.Refused, KeyError, TypeError):
        return []


def _rays_words(listed: MachineList) -> dict[str, str]:
    """By address: how far Ray is with setting it up; what it does not say is left out."""
    found = {}
    try:
        kept = json.loads(_rays_notes(listed).read_text())
        for address, node in kept.items():
            found[address] = str(node["tags"]["ray-node-status"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return found


def _rays_notes(listed: MachineList) -> Path:
    return RAYS_STATE / f"cluster-{listed.cluster}.state"


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)
