"""`homeport doctor`: looks at every machine of a list before homeport is set up on it, or after, and says what to mend.

Exit codes: 0 all is well, or only warnings; 1 something must be mended, or a host can get out; 2 the input is wrong; 3
with --egress: homeport does not run.
"""

import asyncio
import json
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cluster.doctor import Finding, findings, worst
from cluster.doctor_pairs import PortRange, findings_between, ranges
from cluster.doctor_session import Looked, Target, look, over_ssh
from cluster.join import LOOPBACK
from cluster.paths import Paths
from cluster.proof import machine_token
from cluster.restarting import running
from router import api_client, egress_check, following
from router.command_line import FAILED, NOT_RUNNING, PLAIN, WRONG, err, out, refuse
from router.head_service import list_of
from router.join_head import MachineList, own_addresses, read_list
from router.lifecycle import UpRefused
from serving.config_schema import NetworkSection

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
UNWRITTEN = "YOUR_USER"
"""Whom the list as it is shipped lets in."""
STYLES = {"fail": "red", "warn": "yellow", "ok": "dim"}
ANSWER_S = 10.0


def doctor(
    machines: Annotated[
        Path | None, typer.Argument(metavar="LIST", help="Ray's machine list; else the one in configs/.")
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="Look at this machine alone.")] = False,
    egress: Annotated[
        bool, typer.Option("--egress", help="Have every running host try to get out, and say whether it can.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", envvar="HOMEPORT_CONFIG", help="Whose ports are tried (homeport.yaml)."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Look at every machine of a list, and say what would not work there, each with the command that mends it."""
    paths = Paths.from_env(os.environ)
    if egress and (machines is not None or here):
        refuse("--egress asks the hosts that run here; it takes no list.", WRONG)
    if machines is not None and here:
        refuse("Give a list or --here, not both.", WRONG)
    found = _egress(paths) if egress else _look(paths, machines, here, config or CONFIGS / "homeport.yaml")
    if as_json:
        print(json.dumps({"worst": worst(found), "findings": [finding.to_json() for finding in found]}))
    else:
        _show(found)
    raise typer.Exit(FAILED if worst(found) == "fail" else 0)


def _look(paths: Paths, named: Path | None, here: bool, config: Path) -> list[Finding]:
    listed = None if here else _list(paths, named)
    targets = [Target(LOOPBACK)] if listed is None else _targets(listed)
    looked = asyncio.run(look(targets, _ranges(config)))
    return all_findings(looked, is_listed=listed is not None)


def all_findings(looked: Looked, *, is_listed: bool) -> list[Finding]:
    """By machine, in the order of the list; those between machines with the machine that is to be mended."""
    found = [finding for seen in looked.machines for finding in findings(seen, is_listed)]
    if is_listed:
        found += findings_between([s for s in looked.machines if s.facts is not None], looked.between)
    order = {seen.name: at for at, seen in enumerate(looked.machines)}
    return sorted(found, key=lambda finding: order[finding.machine])


def _list(paths: Paths, named: Path | None) -> MachineList | None:
    """The list to look at; None: there is none, and so this machine alone."""
    path = named or list_of(paths)
    try:
        if path is not None:
            return read_list(path)
        shipped = read_list(CONFIGS / "cluster.yaml")
    except UpRefused as refused:
        refuse(str(refused), WRONG)
    if shipped.user in (None, UNWRITTEN):
        err.print(
            f"{shipped.path} is as it was shipped: this machine alone is looked at. Give another LIST, or write "
            "addresses and user there.",
            **PLAIN,
        )
        return None
    return shipped


def _targets(listed: MachineList) -> list[Target]:
    """The head first. This machine is looked at without SSH."""
    if listed.user in (None, UNWRITTEN):
        refuse(f"{listed.path}: auth.ssh_user is not written. Write who is let in over SSH.", WRONG)
    own = own_addresses()
    return [
        Target(address) if address in own else over_ssh(address, listed.user or "", listed.key)
        for address in dict.fromkeys((listed.head, *listed.workers))
    ]


def _ranges(config: Path) -> tuple[PortRange, ...]:
    """The ports that the config gives, as far as it can be read; `homeport up` says what is wrong with it."""
    try:
        told = yaml.safe_load(config.expanduser().read_text(encoding="utf-8"))
        network = NetworkSection.model_validate(told.get("network") or {})
    except (OSError, yaml.YAMLError, ValueError, AttributeError):
        network = NetworkSection()
    return ranges(network.control, network.files, *network.ports)


def _egress(paths: Paths) -> list[Finding]:
    run = running(paths)
    if run is None:
        refuse("homeport does not run here. Run this on the head, after `homeport up`.", NOT_RUNNING)
    if following.is_worker(run):
        refuse(following.worker_line(paths, run) + " Ask there.", WRONG)
    secret = api_client.owners_secret(paths)
    try:
        fleet = api_client.ask(run["url"], "GET", "/api/fleet", secret=secret, timeout_s=ANSWER_S)
        trust = api_client.trust(paths)
    except (api_client.Away, api_client.Refused, KeyError) as error:
        refuse(f"The router cannot answer: {error}", FAILED)
    address = run.get("address", LOOPBACK)
    addresses = own_addresses() if address == LOOPBACK else [address]
    found = asyncio.run(
        egress_check.check(fleet["machines"], addresses[:4], partial(machine_token, secret), trust)
    )
    if not found:
        refuse("No host runs yet, so nothing could be asked. `homeport status` says how far it is.", FAILED)
    return found


def _show(found: list[Finding]) -> None:
    for machine in dict.fromkeys(finding.machine for finding in found):
        out.print(machine, style="bold", **PLAIN)
        mine = [finding for finding in found if finding.machine == machine]
        for finding in sorted(mine, key=lambda each: list(STYLES).index(each.severity)):
            out.print(f"  {finding.severity:<5}{finding.what}", style=STYLES[finding.severity], **PLAIN)
            if finding.remedy:
                out.print(f"       -> {finding.remedy}", **PLAIN)
    counts = Counter(finding.severity for finding in found)
    parts = [f"{counts['ok']} ok", f"{counts['warn']} to look at", f"{counts['fail']} to mend"]
    out.print(
        f"{', '.join(parts)}.", style=STYLES[worst(found)] if worst(found) != "ok" else "green", **PLAIN
    )
