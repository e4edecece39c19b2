"""`homeport advise`: what the machines are good for, what limits them, and what a wish needs. Exit codes as in
`router.cli`."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cluster.machine import Hardware, Reserve, default_reserve
from cluster.paths import Paths
from router.command_line import PLAIN, WRONG, err, out, refuse, say
from router.fit_commands import machines, specs
from serving.advice import GIB, PLEASANT_PER_S, PROMPT, Need, Use, falls_short, need, use_of, would_do
from serving.bench_kept import figures_of
from serving.hardware_classes import HardwareClass
from serving.llama_options import EngineOptions
from serving.machine_fit import MachineFit, MachineView, machine_fit
from serving.model import ModelSpec
from serving.model_head import NoHead, read_shape
from serving.model_memory import Plan
from serving.wish import Wish, WishError, parse

NOT_SEEN = (
    "Not looked at: the network (a moved context of 100 MiB takes 1 s at 1 Gbit/s) and heat (`homeport bench machine` "
    "again after an hour of work shows whether it slows down)."
)


def advise(
    wish: Annotated[
        str | None,
        typer.Argument(help='What is wanted, e.g. "32B at Q4, 16k context, 2 sessions, 20 tokens/s".'),
    ] = None,
    listed: Annotated[
        Path | None,
        typer.Option(
            "--machines", help="JSON of machines (as /api/fleet gives them), instead of those that run."
        ),
    ] = None,
    sessions: Annotated[
        int, typer.Option("--sessions", min=1, help="Sessions at once, of the config's models.")
    ] = 1,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", envvar="HOMEPORT_CONFIG", help="Where the models stand.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Say what each machine is good for and what limits it; with a wish, what a machine must have for it, which of
    these have it, and which that can be bought."""
    paths = Paths.from_env(os.environ)
    views = machines(paths)[0] if listed is None else _listed(listed)
    if wish is not None:
        _wish(wish, views, as_json)
        return
    uses = [use_of(view) for view in views]
    fits = _fits(paths, specs(paths, config), views, sessions)
    if as_json:
        models = {name: [each.to_json() for each in found] for name, found in fits.items()}
        print(
            json.dumps(
                {"machines": [{**asdict(use), "good_for": use.good_for} for use in uses], "models": models}
            )
        )
        return
    _show(uses, fits, sessions)


def _wish(text: str, views: Sequence[MachineView], as_json: bool) -> None:
    try:
        wish = parse(text)
    except WishError as error:
        refuse(str(error), WRONG)
    needed, here = need(wish), {view.name: falls_short(view, wish) for view in views}
    found = would_do(needed)
    if as_json:
        told = {
            "wish": asdict(wish),
            "need": {**asdict(needed), "memory": needed.memory, "named_bytes_s": needed.named_bytes_s},
            "machines": {name: list(reasons) for name, reasons in here.items()},
            "would_do": [asdict(each) for each in found],
        }
        print(json.dumps(told))
        return
    _show_need(wish, needed, here, found)


def _listed(path: Path) -> list[MachineView]:
    try:
        told = json.loads(path.expanduser().read_text(encoding="utf-8"))
        return [_view(each) for each in (told["machines"] if isinstance(told, dict) else told)]
    except OSError as error:
        refuse(f"{path}: {error.strerror}.", WRONG)
    except KeyError as missing:
        refuse(f"{path}: {missing} is missing. Give what `/api/fleet` of a router answers.", WRONG)
    except (ValueError, TypeError, AttributeError) as error:
        refuse(f"{path} is no list of machines ({error}). Give what `/api/fleet` of a router answers.", WRONG)


def _view(told: Mapping[str, Any]) -> MachineView:
    hardware = Hardware.from_json(told["hardware"])
    reserve = Reserve.from_json(told["reserve"]) if told.get("reserve") else default_reserve(hardware)
    return MachineView(str(told["name"]), hardware, reserve, figures_of(told.get("bench")))


def _fits(
    paths: Paths, models: Sequence[ModelSpec], views: Sequence[MachineView], sessions: int
) -> dict[str, list[MachineFit]]:
    found = {}
    for spec in models:
        if spec.engine == "script":
            err.print(f"{spec.name} is left out. It is a script, without weights.", style="yellow", **PLAIN)
            continue
        try:
            shape = read_shape(spec.source, paths.home)
        except NoHead as error:
            err.print(f"{spec.name} is left out. {error}.", style="yellow", **PLAIN)
            continue
        plan = Plan(
            spec.context, max(sessions, spec.sessions), EngineOptions.from_options(dict(spec.options))
        )
        cores = spec.need.cores if spec.take == "needs" else None
        depth = max(1, spec.context // 4)
        found[spec.name] = [machine_fit(shape, plan, spec.engine, view, cores, depth) for view in views]
    return found


def _show(uses: Sequence[Use], fits: Mapping[str, Sequence[MachineFit]], sessions: int) -> None:
    table = Table(
        "machine",
        "largest at Q4 that fits",
        f"that decodes at {PLEASANT_PER_S:.0f} tokens/s",
        f"first token of {PROMPT:,}",
        "loading it",
        "what limits it",
        box=None,
        header_style="bold",
    )
    for use in uses:
        table.add_row(
            use.machine,
            _billions(use.fits),
            "?" if use.pleasant is None else _billions(use.pleasant),
            "?" if use.first_token_s is None else f"{use.first_token_s:.1f} s",
            "?" if use.load_s is None else f"{use.load_s:.1f} s",
            "; ".join(use.limits),
        )
    out.print(table)
    for name, found in fits.items():
        for each in found:
            speed = each.why_no_speed if each.speed is None else f"{each.speed.decode_per_s:,.1f} tokens/s"
            cores = f"on {each.cores} core{'' if each.cores == 1 else 's'}, one alone"
            fitting = "fits" if each.fits else "does not fit"
            count = f"{sessions} session{'' if sessions == 1 else 's'}"
            say(f"{name} with {count} {fitting} on {each.machine}: {speed} {cores}")
    say(NOT_SEEN)


def _show_need(
    wish: Wish, needed: Need, here: Mapping[str, Sequence[str]], found: Sequence[HardwareClass]
) -> None:
    used = "" if wish.active == wish.parameters else f", {_billions(wish.active)} of it used by a token"
    say(
        f"{_billions(wish.parameters)}{used} at {wish.bits:g} bits, {wish.context:,} tokens of context, "
        f"{wish.sessions} session{'' if wish.sessions == 1 else 's'}, {wish.decode_per_s:g} tokens/s each:"
    )
    parts = [(needed.weights, "weights"), (needed.kv, "contexts"), (needed.buffers, "buffers and the host")]
    spelled = ", ".join(f"{size / GIB:.1f} for {what}" for size, what in parts)
    say(f"  memory      {needed.memory / GIB:.1f} GiB ({spelled})")
    say(
        f"  bandwidth   {needed.bytes_s / 1e9:,.0f} GB/s read, so about {needed.named_bytes_s / 1e9:,.0f} GB/s by its "
        f"maker's count"
    )
    prefill = (
        "" if needed.prefill_flops is None else f", {needed.prefill_flops / 1e12:,.1f} TFLOP/s for prompts"
    )
    say(f"  arithmetic  {needed.decode_flops / 1e12:,.2f} TFLOP/s for decoding{prefill}")
    for name, reasons in here.items():
        say(f"{name}: {'; '.join(reasons)}" if reasons else f"{name} would do")
    if not found:
        say(
            "Nothing in docs/choosing.md would do alone. Wish for less context, fewer bits, or a mixture of experts."
        )
        return
    table = Table("would do", "memory", "bandwidth", "by", box=None, header_style="bold")
    for each in found:
        table.add_row(each.name, f"{each.memory_gib} GiB", f"{each.bytes_s / 1e9:,.0f} GB/s", each.source)
    out.print(table)


def _billions(parameters: float) -> str:
    return f"{parameters / 1e9:.0f}B" if parameters >= 10e9 else f"{parameters / 1e9:.1f}B"
