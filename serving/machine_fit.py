"""Whether a model fits on a machine, how much context there is room for, and how fast it will be there. Pure.

Counts a machine that has nothing else on it but its reserve. Prints nothing (router/fit_commands.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cluster.machine import Hardware, Reserve
from cluster.slices import usable_cores
from serving.machine_figures import GpuFigures, MachineFigures
from serving.model_memory import (
    ModelMemory,
    Plan,
    compute_bytes,
    kv_bytes,
    largest_context,
    layers_that_fit,
    llama_memory,
    vllm_kv_bytes,
)
from serving.model_shape import ModelShape
from serving.speed import NotMeasured, Speed, active_bytes, speed
from serving.vllm_options import BASE_BYTES, GPU_USED

EngineWord = Literal["llama.cpp", "vllm"]
HOST_BYTES = 96 * 2**20
"""What a host takes beside the model: 55 MiB once its parts are imported, and turns take some."""
BENCH = "not measured: run `homeport bench machine` there"


@dataclass(frozen=True, slots=True)
class MachineView:
    """One machine, as far as it is known. `figures` None: it was never measured."""

    name: str
    hardware: Hardware
    reserve: Reserve
    figures: MachineFigures | None

    @property
    def free_bytes(self) -> int:
        """Of main memory, for models."""
        return max(0, self.hardware.memory_bytes - self.reserve.memory_bytes - HOST_BYTES)

    @property
    def cores(self) -> int:
        return len(usable_cores(self.hardware, self.reserve))


@dataclass(frozen=True, slots=True)
class GpuFit:
    """On one GPU. `layers` of `of`: one more than the model has, as the output counts as one."""

    uuid: str
    name: str
    layers: int
    of: int
    left_bytes: int
    """Once all of it is there; less than 0: that much is missing."""
    most_per_s: float | None
    """Tokens a second that its memory allows at most, if all of the model is there; None: its driver does not say how
    fast it is."""


@dataclass(frozen=True, slots=True)
class MachineFit:
    """What is foretold for one machine."""

    machine: str
    needed_bytes: int
    left_bytes: int
    """Of main memory; less than 0: that much is missing."""
    largest_context: int
    """Tokens of each session; 0: not even the weights fit."""
    cores: int
    gpus: tuple[GpuFit, ...]
    speed: Speed | None
    why_no_speed: str = ""

    @property
    def fits(self) -> bool:
        """In main memory, or as a whole on a GPU."""
        return self.left_bytes >= 0 or any(gpu.left_bytes >= 0 for gpu in self.gpus)

    def to_json(self) -> dict[str, Any]:
        told = self.speed
        return {
            "machine": self.machine,
            "fits": self.fits,
            "needed_bytes": self.needed_bytes,
            "left_bytes": self.left_bytes,
            "largest_context": self.largest_context,
            "cores": self.cores,
            "gpus": [
                {
                    "uuid": gpu.uuid,
                    "name": gpu.name,
                    "layers": gpu.layers,
                    "of": gpu.of,
                    "left_bytes": gpu.left_bytes,
                    "most_per_s": gpu.most_per_s,
                }
                for gpu in self.gpus
            ],
            "decode_per_s": None if told is None else round(told.decode_per_s, 1),
            "prefill_per_s": None if told is None else round(told.prefill_per_s, 1),
            "stand_ins": {} if told is None else dict(told.stand_ins),
            "why_no_speed": self.why_no_speed,
        }


def memory_of(shape: ModelShape, plan: Plan, engine: EngineWord) -> ModelMemory:
    """vLLM's buffers are not foretold: on a GPU it takes its share of the memory whatever it needs."""
    if engine == "vllm":
        return ModelMemory(shape.weight_bytes, 0, vllm_kv_bytes(shape, plan.context, plan.sessions), 0, 0)
    return llama_memory(shape, plan)


def machine_fit(
    shape: ModelShape, plan: Plan, engine: EngineWord, view: MachineView, cores: int | None, depth: int
) -> MachineFit:
    """`cores` None: all that may be used there. `depth`: tokens held when the speed counts."""
    base = BASE_BYTES if engine == "vllm" else 0
    needed = memory_of(shape, plan, engine).needed + base
    used = view.cores if cores is None else min(cores, view.cores)
    rates = {gpu.uuid: gpu for gpu in view.figures.gpus} if view.figures else {}
    room = view.free_bytes
    context = largest_context(shape, plan, room - base, engine)
    gpus = []
    for gpu in (each for each in view.hardware.gpus if each.usable):
        fit = _gpu_fit(shape, plan, engine, gpu.memory_bytes, rates.get(gpu.uuid), depth)
        gpus.append(GpuFit(gpu.uuid, gpu.name, *fit))
        share = GPU_USED if engine == "vllm" else 1.0
        context = max(context, largest_context(shape, plan, int(gpu.memory_bytes * share), engine))
    told, why = _speed(shape, plan, engine, view, used, depth)
    return MachineFit(view.name, needed, room - needed, context, used, tuple(gpus), told, why)


def _speed(
    shape: ModelShape, plan: Plan, engine: EngineWord, view: MachineView, cores: int, depth: int
) -> tuple[Speed | None, str]:
    if engine == "vllm":
        return None, "not foretold for vLLM"
    if view.figures is None or cores < 1:
        return None, BENCH
    try:
        return speed(shape, view.figures.on(cores), plan.options.kv_type, depth), ""
    except NotMeasured:
        return None, BENCH


def _gpu_fit(
    shape: ModelShape,
    plan: Plan,
    engine: EngineWord,
    memory_bytes: int,
    rate: GpuFigures | None,
    depth: int,
) -> tuple[int, int, int, float | None]:
    """Layers, of how many, bytes left, and the most tokens a second that the memory's speed allows: each reads all
    weights that it needs, and all keys and values so far, once."""
    of = shape.layers + 1
    one = Plan(max(1, depth), 1, plan.options)
    most = None
    if rate is not None and rate.bytes_s:
        most = rate.bytes_s / (active_bytes(shape) + kv_bytes(shape, one))
    if engine == "vllm":
        left = int(memory_bytes * GPU_USED) - memory_of(shape, plan, engine).needed
        return (of if left >= 0 else 0), of, left, most
    whole = sum(shape.layer_bytes) + shape.outside_bytes + kv_bytes(shape, plan) + compute_bytes(shape, plan)
    return layers_that_fit(shape, plan, memory_bytes), of, memory_bytes - whole, most


def off_by(predicted: int, memory: Mapping[str, Any] | None) -> float | None:
    """By what share the engine took more than was foretold, as a host tells it; None where it does not."""
    engine = (memory or {}).get("engine")
    if not isinstance(engine, Mapping) or not predicted:
        return None
    took = sum(int(engine.get(part) or 0) for part in ("weights", "kv", "compute"))
    return took / predicted - 1 if took else None


def faster_by(
    shape: ModelShape, plan: Plan, replica: Mapping[str, Any], view: MachineView | None
) -> dict[str, float]:
    """What a replica's last turns came to, and by what share that is faster than foretold for the cores of its slice;
    empty where it tells nothing. On a GPU nothing is foretold."""
    rates, carved = replica.get("rates") or {}, replica.get("slice") or {}
    per_s, depth = rates.get("decode_per_s"), rates.get("depth")
    if not per_s or not depth:
        return {}
    told = {"decode_per_s": float(per_s), "depth": int(depth)}
    cores = len(carved.get("cores") or ())
    if view is not None and cores and not carved.get("gpus"):
        found, _ = _speed(shape, plan, replica.get("engine") or "llama.cpp", view, cores, int(depth))
        if found is not None:
            told["decode_off"] = round(per_s / found.decode_per_s - 1, 4)
    return told
