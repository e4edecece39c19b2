"""What `homeport pull` does: has a model from Hugging Face brought, ahead, to the machines that are to serve it; to
this one alone where no homeport runs. Draws nothing (router/pull_commands.py).
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

from cluster.paths import Paths, read_json
from cluster.processes import clean_environment, mark
from router import api_client
from router.command_line import FAILED, WRONG
from router.refused import Refused
from serving.bring_order import Order
from serving.config import load
from serving.model_files import HUB, NoSource, hub_source
from serving.model_room import words
from serving.model_trouble import LASTING

LOOK_S = 0.5
SILENT_S = 30.0
"""A controller that does not answer for so long is no longer waited for."""


class NotPulled(Refused):
    """Nothing was begun."""

    usual_code = WRONG


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be brought, and to which machines: `all`, names, or {"zone"}."""

    source: str
    machines: Any = "all"
    budget: int | None = None
    """Where it is known only from a config file: network.models_disk."""
    named: tuple[str, ...] = ()
    """Likewise: all sources of that file."""


@dataclass(frozen=True, slots=True)
class At:
    """How far one machine is: `state` is whole, fetching, waiting, failed, or away: it goes on once it is back."""

    state: str
    detail: str
    got: int = 0
    size: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"state": self.state, "detail": self.detail, "got": self.got, "size": self.size}


Show = Callable[[Mapping[str, At]], None]
"""Shows how far each machine is, by name."""


def find(paths: Paths, name: str, config: Path | None, runs: bool) -> Wanted:
    """What `name`, a model of the config or a source, stands for. `config` is the file; None: what runs.

    Raises NotPulled and ConfigError.
    """
    budget, named = None, ()
    if config is not None:
        loaded = load(config, paths.home, allow_script=True)
        models = [model.to_json() for model in loaded.models]
        budget, named = loaded.network.models_disk, tuple(m["source"] for m in models)
    elif runs:
        models = [model["spec"] for model in (read_json(paths.revision) or {}).get("models", ())]
    else:
        models = []
    if name.startswith(HUB):
        try:
            hub_source(name)
        except NoSource as error:
            raise NotPulled(f"{error}.") from None
        return Wanted(name, "all", budget, named)
    known = {model["name"]: model for model in models}
    if name not in known:
        names = ", ".join(known) or "none"
        raise NotPulled(
            f"The config has no model {name}; it has: {names}. A source may be given too: hf:OWNER/REPO:FILE, "
            "or hf:OWNER/REPO for vLLM."
        )
    source = known[name]["source"]
    if not source.startswith(HUB):
        raise NotPulled(
            f"{name} does not come from Hugging Face: its source is {source}. There is nothing to fetch.", 0
        )
    return Wanted(source, known[name]["machines"], budget, named)


def through_controller(paths: Paths, wanted: Wanted, show: Show) -> dict[str, At]:
    """Have the cluster get it, and follow that until every machine has it, cannot, or is away. Raises NotPulled."""
    try:
        body = {"source": wanted.source, "machines": wanted.machines}
        names = api_client.ask_control(paths, "POST", "/models/pull", body)["machines"]
    except (api_client.Away, api_client.Refused) as error:
        raise NotPulled(f"The controller cannot be asked: {error}. Try again in a moment.", FAILED) from None
    if not names:
        raise NotPulled("No machine that is to have it is here now; they get it when they serve it.", FAILED)
    heard_at = time.monotonic()
    found: dict[str, At] = {}
    while True:
        try:
            fleet = api_client.ask_control(paths, "GET", "/fleet")
            heard_at = time.monotonic()
            machines = {each["name"]: each for each in fleet["machines"]}
            found = {name: at_machine(machines.get(name), wanted.source) for name in names}
            show(found)
        except (api_client.Away, api_client.Refused) as error:
            if time.monotonic() - heard_at > SILENT_S:
                raise NotPulled(
                    f"The controller does not answer: {error}. It goes on once it is back.", FAILED
                ) from None
        if found and all(at.state in ("whole", "failed", "away") for at in found.values()):
            return found
        time.sleep(LOOK_S)


def at_machine(report: Mapping[str, Any] | None, source: str) -> At:
    """How far a machine is with this source, by its keeper's report."""
    models = (report or {}).get("models")
    if report is not None and report.get("state") in ("lost", "asleep"):
        return At("away", "it is away, and goes on once it is back")
    if report is None or models is None or report.get("state") == "unknown":
        return At("waiting", "it is away")
    if source in models["held"]:
        size = sum(part["size"] for part in models["held"][source]["parts"])
        return At("whole", "has it", size, size)
    told = models["bringing"].get(source)
    if told is None:
        return At("waiting", "waits for its turn, or until another machine of its zone has it")
    if told.get("doing"):
        got, size = int(told["got"]), int(told["size"])
        return At("fetching", words(told["doing"], got, size, told["from"]), got, size)
    trouble = told.get("trouble") or {"code": "ended", "message": "it is about to begin", "remedy": ""}
    state = "failed" if trouble["code"] in LASTING or trouble["code"] == "disk" else "waiting"
    return At(state, f"{trouble['message']}. {trouble['remedy']}".removesuffix(". "))


def here(paths: Paths, wanted: Wanted, show: Show) -> dict[str, At]:
    """Fetch it to this machine, where no homeport runs. Ctrl-C ends it; what is there of it stays."""
    paths.make()
    order = Order(
        wanted.source,
        str(paths.fetched),
        "fetch",
        budget=wanted.budget,
        named=wanted.named,
        token_file=str(paths.cluster_token),
    )
    with (paths.logs / "models.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.bring_model"],
            env={**clean_environment(os.environ), **mark(paths, "models")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    at = At("failed", f"it broke off; see {paths.logs / 'models.log'}")
    try:
        process.stdin.write(json.dumps(order.to_json()).encode() + b"\n")
        process.stdin.flush()
        for line in process.stdout:
            told = json.loads(line)
            if "doing" in told:
                got, size = told["got"], told["size"]
                show(
                    {"this machine": At("fetching", words(told["doing"], got, size, told["from"]), got, size)}
                )
            elif "trouble" in told:
                at = At("failed", f"{told['trouble']['message']}. {told['trouble']['remedy']}")
            elif "whole" in told:
                size = sum(part["size"] for part in told["whole"]["parts"])
                at = At("whole", "has it", size, size)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    return {"this machine": at}
