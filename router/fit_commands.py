"""`homeport fit MODEL`: does it fit, with how much context, and how fast will it be? For every machine of the fleet, or
this one alone where homeport does not run. Exit codes as in `router.cli`; 1 too: it fits on no machine."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from cluster.cpu import cpu_flags
from cluster.inventory import InventoryError, measure
from cluster.machine import Hardware, Reserve, default_reserve
from cluster.paths import Paths, read_json
from cluster.slices import bytes_text
from router import api_client, following
from router.command_line import DEFAULT_CONFIG, FAILED, PLAIN, WRONG, err, out, refuse, say
from router.run_here import known_run
from serving.bench_kept import figures_of, kept
from serving.config import ConfigError, load
from serving.llama_options import EngineOptions, KvType
from serving.machine_fit import EngineWord, MachineFit, MachineView, faster_by, machine_fit, off_by
from serving.model import ModelSpec
from serving.model_files import BUNDLED, HUB
from serving.model_head import NoHead, read_shape
from serving.model_memory import KV_BYTES, Plan, llama_memory
from serving.model_shape import ModelShape

USUAL_CONTEXT = 8192
KV_TYPES = tuple(kind for kind in KV_BYTES if kind in ("f16", "q8_0", "q4_0"))
HERE = "this machine"
ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be fitted."""

    source: str
    engine: EngineWord
    plan: Plan
    cores: int | None
    model: str | None
    """Its name in the config."""


def fit(
    model: Annotated[
        str,
        typer.Argument(
            help="A model of the config, bundled, a path, hf:OWNER/REPO:FILE, hf:OWNER/REPO or https://…"
        ),
    ],
    context: Annotated[int | None, typer.Option("--context", min=1, help="Tokens of one session.")] = None,
    sessions: Annotated[int | None, typer.Option("--sessions", min=1, help="Sessions at once.")] = None,
    cores: Annotated[
        int | None, typer.Option("--cores", min=1, help="Cores of the replica; else all.")
    ] = None,
    kv_type: Annotated[
        str | None, typer.Option("--kv-type", help=f"How contexts are kept: {', '.join(KV_TYPES)}.")
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            "--depth", min=1, help="Tokens held when the speed counts; else a quarter of the context."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", envvar="HOMEPORT_CONFIG", help="Where the model stands.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Say for every machine whether a model fits, with how much context, and how fast it will be. Reads the model's
    head only."""
    paths = Paths.from_env(os.environ)
    if kv_type is not None and kv_type not in KV_TYPES:
        refuse(f"--kv-type {kv_type} is not one of {', '.join(KV_TYPES)}.", WRONG)
    asked = find(paths, model, config)
    options = asked.plan.options
    options = replace(options, kv_type=cast(KvType, kv_type) if kv_type else options.kv_type)
    try:
        shape = read_shape(asked.source, paths.home)
    except NoHead as error:
        refuse(f"{error}.", WRONG)
    usual = asked.plan.context or min(USUAL_CONTEXT, shape.trained_context or USUAL_CONTEXT)
    plan = Plan(context or usual, sessions or asked.plan.sessions, options)
    engine: EngineWord = "vllm" if shape.format == "safetensors" else asked.engine
    at = min(depth or max(1, plan.context // 4), plan.context)
    views, fleet = machines(paths)
    fits = [machine_fit(shape, plan, engine, view, cores or asked.cores, at) for view in views]
    met = measured(fleet, asked.model, shape, plan, {view.name: view for view in views})
    if as_json:
        told = {
            "source": asked.source,
            "engine": engine,
            "context": plan.context,
            "sessions": plan.sessions,
            "depth": at,
            "parameters": shape.parameters,
            "weight_bytes": shape.weight_bytes,
            "machines": [each.to_json() for each in fits],
            "measured": met,
        }
        print(json.dumps(told))
    else:
        _show(model, shape, plan, engine, at, fits, met)
    raise typer.Exit(0 if any(each.fits for each in fits) else FAILED)


def find(paths: Paths, name: str, config: Path | None) -> Asked:
    """What `name` stands for: a model of the config, of what runs or of the file; else a source. A context of 0 is not
    said."""
    if name == BUNDLED or name.startswith((HUB, "https://", "http://")) or "/" in name or Path(name).exists():
        return Asked(name, "llama.cpp", Plan(0), None, None)
    models = specs(paths, config)
    spec = next((each for each in models if each.name == name), None)
    if spec is None:
        known = ", ".join(each.name for each in models) or "none"
        refuse(
            f"There is no file {name}, and the config has no such model; it has: {known}. Give `bundled`, a path, "
            "hf:OWNER/REPO:FILE, hf:OWNER/REPO or https://…",
            WRONG,
        )
    if spec.engine == "script":
        refuse(
            f"{name} is a script: it has no weights, and runs wherever there is room for its needs.", WRONG
        )
    plan = Plan(spec.context, spec.sessions, EngineOptions.from_options(dict(spec.options)))
    cores = spec.need.cores if spec.take == "needs" else None
    return Asked(spec.source, spec.engine, plan, cores, spec.name)


def specs(paths: Paths, config: Path | None) -> list[ModelSpec]:
    """The models that run, or of the file; exits where it is wrong."""
    revision = read_json(paths.revision)
    if config is None and known_run(paths) is not None and revision:
        return [ModelSpec.from_json(model["spec"]) for model in revision.get("models", ())]
    try:
        return list(load(config or DEFAULT_CONFIG, paths.home, allow_script=True).models)
    except ConfigError as error:
        refuse(str(error), WRONG)


def machines(paths: Paths) -> tuple[list[MachineView], Mapping[str, Any]]:
    """The fleet's, and the fleet; where homeport does not run, this machine alone, measured now."""
    run = known_run(paths)
    if run is None or following.is_worker(run):
        try:
            hardware = measure(os.environ)
        except InventoryError as error:
            refuse(str(error), WRONG)
        return [MachineView(HERE, hardware, default_reserve(hardware), kept(paths))], {}
    try:
        fleet = api_client.ask(
            run["url"], "GET", "/api/fleet", secret=api_client.owners_secret(paths), timeout_s=ANSWER_S
        )
    except (api_client.Away, api_client.Refused, KeyError) as error:
        refuse(f"The router cannot answer: {error}", FAILED)
    views = [
        MachineView(
            machine["name"],
            Hardware.from_json(machine["hardware"]),
            Reserve.from_json(machine["reserve"]),
            figures_of(machine.get("bench")),
        )
        for machine in fleet["machines"]
        if machine.get("hardware") and machine.get("reserve")
    ]
    if not views:
        refuse("No machine was heard yet. `homeport status` says how far it is.", FAILED)
    return views, fleet


def measured(
    fleet: Mapping[str, Any],
    model: str | None,
    shape: ModelShape,
    plan: Plan,
    views: Mapping[str, MachineView],
) -> dict[str, dict[str, float]]:
    """By replica of this model that runs: `bytes` that its engine took, and `off`, by what share that is more than was
    foretold for this plan on a CPU such as this machine's (only llama.cpp tells); `decode_per_s` of its last turns that
    ran alone, `depth`, the tokens that they held, and `decode_off`, by what share that is faster than was foretold."""
    predicted = llama_memory(shape, plan, cpu_flags()).told.total
    found = {}
    for machine in fleet.get("machines", ()):
        for replica in machine["replicas"]:
            if model is None or replica.get("model") != model:
                continue
            told: dict[str, float] = {}
            off = off_by(predicted, replica.get("memory"))
            if off is not None:
                told = {"off": round(off, 4), "bytes": round(predicted * (1 + off))}
            told |= faster_by(shape, plan, replica, views.get(machine["name"]))
            if told:
                found[replica["name"]] = told
    return found


def _show(
    name: str,
    shape: ModelShape,
    plan: Plan,
    engine: str,
    depth: int,
    fits: list[MachineFit],
    met: Mapping[str, Mapping[str, float]],
) -> None:
    experts = f", {shape.experts_used} of {shape.experts} experts used" if shape.experts else ""
    window = f", a window of {shape.window} in {sum(shape.windowed)} layers" if any(shape.windowed) else ""
    say(
        f"{name}: {shape.architecture}, {shape.parameters / 1e9:.2f} billion parameters in {shape.bits:.1f} bits "
        f"(most {shape.kind}), {shape.layers} layers{experts}{window}, trained for {shape.trained_context:,} tokens"
    )
    memory = llama_memory(shape, plan)
    contexts = f"{plan.sessions} x {plan.context:,} tokens"
    parts = f"{bytes_text(memory.weights)} of weights, {bytes_text(memory.kv)} for {contexts}"
    if engine == "llama.cpp":
        parts += f", {bytes_text(memory.compute)} for a step, {bytes_text(memory.embedding)} for embeddings"
    say(f"{engine} takes {bytes_text(fits[0].needed_bytes)}: {parts}")
    table = Table(
        "machine",
        "fits",
        "memory",
        "largest context",
        "GPUs",
        "prefill",
        f"decode after {depth:,}",
        box=None,
        header_style="bold",
    )
    for each in fits:
        table.add_row(
            each.machine,
            "yes" if each.fits else "no",
            _left(each),
            f"{each.largest_context:,}",
            _gpus(each),
            *_speeds(each),
        )
    out.print(table)
    for each in fits:
        if each.speed is not None and each.speed.stand_ins:
            kinds = ", ".join(f"{kind} (as {other})" for kind, other in each.speed.stand_ins)
            say(f"{each.machine}: not every kind of weights was measured: {kinds}")
        if each.why_no_speed:
            err.print(f"{each.machine}: speed {each.why_no_speed}", style="yellow", **PLAIN)
    for replica, told in met.items():
        say(f"{replica} runs it: {_met(told)}")


def _met(told: Mapping[str, float]) -> str:
    parts = []
    if "bytes" in told:
        parts.append(f"its engine took {bytes_text(int(told['bytes']))}, {told['off']:+.1%} against this")
    if "decode_per_s" in told:
        off = f" ({told['decode_off']:+.0%} against what is foretold)" if "decode_off" in told else ""
        parts.append(f"{told['decode_per_s']:,.1f} tokens/s after {told['depth']:,}{off}")
    return "; ".join(parts)


def _left(each: MachineFit) -> str:
    size = f"{abs(each.left_bytes) / 2**30:.1f} GiB"
    return f"{size} left" if each.left_bytes >= 0 else f"{size} missing"


def _gpus(each: MachineFit) -> str:
    if not each.gpus:
        return "-"
    told = []
    for gpu in each.gpus:
        most = "" if gpu.most_per_s is None else f", at most {gpu.most_per_s:,.0f} tokens/s"
        told.append(f"{gpu.name}: {gpu.layers} of {gpu.of} layers{most}")
    return "; ".join(told)


def _speeds(each: MachineFit) -> tuple[str, str]:
    if each.speed is None:
        return "?", "?"
    cores = f"on {each.cores} core{'' if each.cores == 1 else 's'}"
    return f"{each.speed.prefill_per_s:,.0f} tokens/s", f"{each.speed.decode_per_s:,.1f} tokens/s {cores}"
