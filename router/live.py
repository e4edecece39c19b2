"""What a person sees: the live view of `homeport up`, and the tables of `status` and `sessions`. Asks nobody."""

import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.gpu_parts import gpu_texts
from cluster.slices import bytes_text
from router import moves_words
from serving.model_room import words
from serving.yielding import PERSON

SYSTEM = "You are a helpful AI assistant."
"""What a model is told first where the person does not say: small models need it."""
STEPS = (("ray", "Ray"), ("controller", "controller"), ("router", "router"))
MARKS = {
    "ready": ("●", "green"),
    "starting": ("◌", "yellow"),
    "loading": ("◌", "yellow"),
    "draining": ("◌", "yellow"),
    "stopping": ("◌", "yellow"),
    "yielded": ("◌", "yellow"),
    "failed": ("✗", "red"),
    "lost": ("✗", "red"),
    "asleep": ("☾", "blue"),
}


NO_SLICE: Mapping[str, Any] = {"cores": (), "gpus": (), "memory_bytes": 0}
PIPE_WIDTH = 200
"""Characters of a line that no terminal shows."""


def console(*, stderr: bool = False) -> Console:
    """As wide as its terminal; wide enough for every table where a program reads it."""
    made = Console(stderr=stderr)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


def replicas_of(fleet: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every replica of the fleet, in order of machine and slot."""
    return [replica for machine in fleet.get("machines", ()) for replica in machine["replicas"]]


def curl_line(run: Mapping[str, Any], model: str) -> str:
    """A line to paste into another terminal; where keys are needed, one of them is to be put in."""
    body = {
        "model": model,
        "stream": True,
        "temperature": 0,
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": "What is the capital of France?"},
        ],
    }
    headers = "-H 'content-type: application/json' -H 'x-session-id: tea'"
    if run.get("keys"):
        headers = f"-H 'authorization: Bearer KEY' {headers}"
    return f"curl -N {run.get('url', '')}/v1/chat/completions {headers} \\\n  -d '{json.dumps(body)}'"


def up_view(
    run: Mapping[str, Any], fleet: Mapping[str, Any], sessions: Iterable[Mapping[str, Any]]
) -> RenderableType:
    """Ray, controller, keeper, hosts with loading bars, then the sessions as they come."""
    steps = run.get("steps", {})
    grid = Table.grid(padding=(0, 2))
    for _ in range(4):
        grid.add_column()
    for key, label in STEPS:
        step = steps.get(key, {"state": "waiting"})
        took = f"{step['seconds']:.1f} s" if "seconds" in step else ""
        grid.add_row(
            _mark(step["state"]), label, step["state"], Text(step.get("detail") or took, style="dim")
        )
    for machine in fleet.get("machines", ()):
        state = standing_text(machine)
        facts = ", ".join(_hardware_facts(machine)[:2])
        mark = _mark("ready" if machine["state"] == "cordoned" else machine["state"])
        grid.add_row(mark, f"keeper of {machine['name']}", state, Text(facts, style="dim"))
        for replica in machine["replicas"]:
            grid.add_row(*_host_row(replica))
    for model, reasons in (fleet.get("problems") or {}).items():
        grid.add_row(_mark("failed"), model, "left out", Text("; ".join(reasons.values()), style="dim"))
    parts: list[RenderableType] = [grid]
    listed = list(sessions)
    if listed:
        parts += [Text(), sessions_table(listed)]
    return Group(*parts)


def plain_lines(run: Mapping[str, Any], fleet: Mapping[str, Any], ready: bool) -> list[str]:
    """The same for a log file or a pipe: a line for each thing that is ready or failed, in order."""
    lines = []
    for key, label in STEPS:
        step = run.get("steps", {}).get(key, {})
        if step.get("state") in ("ready", "failed"):
            lines.append(f"{label}: {step['state']}{' ' + step['detail'] if step.get('detail') else ''}")
    for replica in replicas_of(fleet):
        if replica["state"] in ("ready", "failed"):
            cores = ",".join(map(str, (replica["slice"] or NO_SLICE)["cores"]))
            why = f": {replica['detail']}" if replica["state"] == "failed" else ""
            lines.append(
                f"host {replica['name']} on core {cores}: {replica['state']} {replica['model']}{why}"
            )
            lines += [f"  {line}" for line in replica.get("stderr") or ()]
        elif replica["state"] == "starting" and "fetching" in (replica.get("detail") or ""):
            lines.append(f"host {replica['name']}: {tenths(replica['detail'])}")
    if ready and fleet.get("models"):
        url = run.get("url", "")
        lines += [f"Listening on {url}/v1", curl_line(run, fleet["models"][0]["name"])]
    return lines


def tenths(detail: str) -> str:
    """`fetching 43 % of …` as `fetching 40 % of …`: a line in a log for every tenth is enough."""
    return re.sub(r"(?<!\d)(\d?)\d %", lambda found: f"{found[1]}0 %" if found[1] else "0 %", detail)


def status_view(fleet: Mapping[str, Any], run: Mapping[str, Any]) -> RenderableType:
    """Machines, their slices with core ids and owners, and what is enforced or only watched."""
    parts: list[RenderableType] = [Text.assemble("homeport at ", (f"{run.get('url', '')}/v1", "bold cyan"))]
    if not fleet.get("controller", {}).get("reachable", True):
        parts.append(Text("The controller does not answer: this is what was known last.", style="yellow"))
    for machine in fleet.get("machines", ()):
        parts += [Text(), _machine_line(machine)]
        if machine.get("power"):
            parts.append(Text(f"  power: {machine['power']}", style="dim"))
        parts.append(_slices_table(machine))
        parts += [Text(f"  {line}", style=style) for line, style in _onlooker_lines(machine)]
        if machine.get("unlisted"):
            parts.append(Text(f"  {unlisted_text(machine['name'])}", style="yellow"))
        parts += [
            Text(f"  {r['name']}: {line}", style="red")
            for r in machine["replicas"]
            for line in r.get("stderr") or ()
        ]
        parts += [Text(f"  {line}", style=style) for line, style in model_lines(machine)]
    for model, reasons in (fleet.get("problems") or {}).items():
        for where, reason in reasons.items():
            parts.append(Text(f"model {model} does not run on {where}: {reason}", style="yellow"))
    return Group(*parts)


def model_lines(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a machine gets from Hugging Face or another machine, what its replicas wait for, and what is wrong; each
    with its style."""
    lines = [
        (f"{replica['name']}: {replica['detail']}", "red" if replica["state"] == "failed" else "dim")
        for replica in machine["replicas"]
        if replica["state"] in ("starting", "failed") and replica.get("detail") and not replica.get("stderr")
    ]
    models = machine.get("models") or {}
    for source, told in (models.get("bringing") or {}).items():
        if told.get("doing"):
            lines.append(
                (f"{source}: {words(told['doing'], told['got'], told['size'], told['from'])}", "dim")
            )
        elif trouble := told.get("trouble"):
            lines.append((f"{source}: {trouble['message']}. {trouble['remedy']}", "yellow"))
    if models.get("problem"):
        lines.append((str(models["problem"]), "yellow"))
    return lines


LONGEST_ID = 27
"""Characters of a public id."""
LONGEST_STATE = len("resident")


def sessions_table(sessions: Iterable[Mapping[str, Any]]) -> Table:
    """One row a session, by its public id."""
    table = Table(box=None, header_style="bold")
    table.add_column("session", no_wrap=True, min_width=LONGEST_ID)  # whole, to be copied
    for title in ("model", "machine", "home"):
        table.add_column(title, overflow="fold")
    table.add_column("state", min_width=LONGEST_STATE)
    for title in ("context", "turns", "age"):
        table.add_column(title)
    for session in sessions:
        table.add_row(
            session["id"],
            session["model"],
            session["machine"],
            session["replica"],
            _state_text(session),
            f"{session.get('context_tokens') or 0} tokens",
            str(session.get("turns") or 0),
            age_text(session.get("age_s") or 0.0),
        )
    return table


def _state_text(session: Mapping[str, Any]) -> str:
    line = session.get("line")
    if not line:
        return str(session["state"])
    about = "" if line.get("about_s") is None else f", about {age_text(line['about_s'])}"
    return f"{session['state']}, place {line['position']} in the line{about}"


def age_text(seconds: float) -> str:
    """`12 s`, `3 min`, `2 h`, `5 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def standing_text(machine: Mapping[str, Any]) -> str:
    """How a machine stands: `ready`, `cordoned`, `yielded to steam`, `lost, last heard 2 min ago`, `asleep, …, woken by
    its next turn`."""
    state, away_s = str(machine["state"]), machine.get("away_s")
    word = "draining" if machine.get("draining") else "cordoned"
    cordoned = f", {word}" if machine.get("cordoned") and state != "cordoned" else ""
    if state == "unknown":
        return f"not heard yet since the controller began{cordoned}"
    if state == "yielded":
        return f"{_yielded_text(machine.get('yielded') or {}, time.time())}{cordoned}"
    if state == "draining":
        return f"draining: {moves_words.drained(machine)}"
    if state not in ("asleep", "lost"):
        return state
    woken = ", woken by its next turn" if machine.get("wakes") else ""
    if away_s is None:
        return f"{state}, not heard since the controller began{cordoned}{woken}"
    return f"{state}, last heard {age_text(away_s)} ago{cordoned}{woken}"


def _yielded_text(yielded: Mapping[str, Any], now_s: float) -> str:
    """`yielded to steam`, `yielded to its person until 14:05`."""
    by, until_s = yielded.get("by"), yielded.get("until")
    until = "" if until_s is None else f" until {until_text(until_s, now_s)}"
    return f"yielded to {'its person' if by in (None, PERSON) else by}{until}"


def until_text(until_s: float, now_s: float) -> str:
    """`14:05`, on another day with its date; in this machine's time zone. Both in seconds since the epoch."""
    until, now = time.localtime(until_s), time.localtime(now_s)
    is_today = (until.tm_year, until.tm_yday) == (now.tm_year, now.tm_yday)
    return time.strftime("%H:%M" if is_today else "%Y-%m-%d %H:%M", until)


def _onlooker_lines(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is enforced on a machine and what is only watched; who else is on a replica's cores and GPUs; ill GPUs."""
    limits = machine.get("limits") or {"enforced": (), "watched": ()}
    enforced, watched = (", ".join(limits[kind]) or "nothing" for kind in ("enforced", "watched"))
    lines = [(f"enforced: {enforced}; only watched: {watched}", "dim")] if any(limits.values()) else []
    for replica in machine["replicas"]:
        if foreign := replica.get("foreign"):
            told = ", ".join(f"{each['program']} {each['share']:.0%} of a core" for each in foreign)
            lines.append((f"on the cores of {replica['name']}: {told}", "yellow"))
        if foreign := replica.get("foreign_gpu"):
            told = ", ".join(_on_gpu_text(each) for each in foreign)
            lines.append((f"on the GPUs of {replica['name']}: {told}", "yellow"))
    return [*lines, *_gpu_lines(machine)]


def _on_gpu_text(each: Mapping[str, Any]) -> str:
    """`blender (pid 4711) 2 GiB`."""
    held = each.get("memory_bytes")
    return f"{each['program']} (pid {each['pid']})" + ("" if held is None else f" {bytes_text(held)}")


def _gpu_lines(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with a machine's GPUs, as it was measured and as it is now, and which no slice ever has."""
    hardware, now = machine.get("hardware") or {}, machine.get("gpus") or {}
    trouble, lines = hardware.get("gpu_trouble"), list[tuple[str, str]]()
    if trouble:
        lines.append((f"GPUs: {trouble}", "yellow"))
    for gpu in hardware.get("gpus", ()):
        seen = {**gpu, **now.get(gpu["uuid"], {})}
        if seen.get("state", "ok") != "ok":
            lines.append((f"GPU {gpu['uuid']} is {seen['state']}: {seen['reason']}", "red"))
        elif gpu.get("kind") == "inventory only":
            lines.append((f"GPU {gpu['uuid']} ({gpu['name']}): no slice has it (inventory only)", "dim"))
    return lines


def unlisted_text(name: str) -> str:
    """What a person does with a machine that was taken off Ray's list."""
    return (
        f"{name} is not on the list any more: it serves its sessions and takes no new ones. `homeport drain {name}` "
        f"empties it, `homeport down` on it ends its part; `homeport uncordon {name}` keeps it without the list."
    )


def _hardware_facts(machine: Mapping[str, Any]) -> list[str]:
    """Nothing of a machine that was never heard by this head."""
    hardware, reserve = machine.get("hardware"), machine.get("reserve")
    if not hardware:
        return []
    facts = [f"{len(hardware['cores'])} cores", bytes_text(hardware["memory_bytes"])]
    if reserve:
        facts.append(f"{sum(gpu.get('kind') != 'inventory only' for gpu in hardware['gpus'])} GPUs")
        facts.append(f"reserve {reserve['cores']} cores and {bytes_text(reserve['memory_bytes'])}")
    return [*facts, "simulated"] if hardware.get("simulated") else facts


def _machine_line(machine: Mapping[str, Any]) -> Text:
    styles = {"lost": "red", "unknown": "yellow", "asleep": "blue"}
    styles |= dict.fromkeys(("cordoned", "yielded", "draining"), "yellow")
    style = styles.get(machine["state"], "")
    facts = ", ".join([f"zone {machine['zone']}", *_hardware_facts(machine)])
    return Text.assemble(
        (machine["name"], "bold"), "  ", (standing_text(machine), style), "  ", (facts, "dim")
    )


def _slices_table(machine: Mapping[str, Any]) -> Table:
    table = Table(
        "replica", "model", "state", "cores", "GPUs", "memory", "owner", "enforced", "watched", box=None
    )
    for replica in machine["replicas"]:
        held, limits = replica["slice"] or NO_SLICE, replica.get("limits") or {"enforced": (), "watched": ()}
        table.add_row(
            replica["name"],
            replica["model"],
            _state_seen(replica),
            ",".join(map(str, held["cores"])) or "-",
            ",".join(gpu_texts(held)) or "-",
            bytes_text(held["memory_bytes"]),
            ", ".join(replica.get("owners") or ()) or "free",
            ", ".join(limits["enforced"]) or "-",
            ", ".join(limits["watched"]) or "-",
        )
    return table


def _state_seen(replica: Mapping[str, Any]) -> Text:
    """What its host said last is no news of one that does not answer."""
    silent_s = replica.get("silent_s")
    if replica.get("reach") == "out" and replica["state"] not in ("starting", "loading", "failed"):
        since = "" if silent_s is None else f" for {age_text(silent_s)}"
        return Text.assemble(_mark("failed"), f" no answer{since}")
    if replica.get("reach") == "suspect" and silent_s is not None:
        return Text.assemble(_mark("starting"), f" {replica['state']}, no answer for {age_text(silent_s)}")
    return Text.assemble(_mark(replica["state"]), " ", replica["state"])


def _host_row(replica: Mapping[str, Any]) -> tuple[RenderableType, ...]:
    cores = ",".join(map(str, (replica["slice"] or NO_SLICE)["cores"]))
    label = f"  host {replica['name']}  core {cores}"
    if replica["state"] == "loading":
        bar: RenderableType = ProgressBar(
            total=1.0, completed=float(replica.get("progress") or 0.0), width=24
        )
    else:
        bar = Text(replica.get("detail") or "", style="dim")
    return _mark(replica["state"]), label, f"{replica['state']} {replica['model']}", bar


def _mark(state: str) -> Text:
    sign, style = MARKS.get(state, ("·", "dim"))
    return Text(sign, style=style)
