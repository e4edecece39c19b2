"""How vLLM is started for a slice: the command line, the environment, and how much memory its KV cache gets. Pure.

Starts nothing (see vllm_child.py). The flags and variables are those of vLLM 0.32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.slices import Slice, bytes_text
from serving.hf_config import HfConfig
from serving.vllm_options import BASE_BYTES, GPU_USED, VllmOptions

NAME = "model"
"""What its own API calls the model: nobody but its host sees it."""
CPU_BATCH = 512
"""Tokens of a step where the config does not say: a neighbour waits for a step, and so does who watches for a hang."""
KEPT = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "CUDA_HOME")
KEPT_FROM = ("OMP_", "MKL_", "OPENBLAS_", "NCCL_", "CUDA_VISIBLE_DEVICES", "HOMEPORT_RUN", "HOMEPORT_ROLE")
"""Of the host's environment: what else would change what vLLM does."""


class NoRoom(Exception):
    """The slice has no room for this model. The message says how much it would take."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one start of vLLM lives."""

    python: str
    model: str
    """A folder as Hugging Face has it."""
    socket: str
    """The Unix socket on which it is asked."""
    folder: str
    """For what it keeps in files while it lives; nobody else's."""
    api_key: str
    seed: int


@dataclass(frozen=True, slots=True)
class Command:
    argv: tuple[str, ...]
    env: Mapping[str, str]


def kv_bytes(carved: Slice, config: HfConfig, context: int, sessions: int, options: VllmOptions) -> int:
    """Bytes of the KV cache on a CPU. Raises NoRoom where not even one session's context fits."""
    block = options.block_size
    per_session = -(-context // block) * block * config.kv_bytes_per_token
    room = carved.memory_bytes - config.weight_bytes - BASE_BYTES
    spare = block * config.kv_bytes_per_token  # vLLM keeps one block for itself
    wanted = options.kv_memory or sessions * per_session + spare
    if min(room, wanted) < per_session + spare:
        least = config.weight_bytes + BASE_BYTES + per_session + spare
        takes = f"a context of {context} tokens takes {bytes_text(per_session + spare)} of KV cache"
        if wanted < per_session + spare:
            raise NoRoom(f"{takes}, and options.kv_memory is less. Make it larger, or remove it")
        raise NoRoom(
            f"{takes} beside {bytes_text(config.weight_bytes)} of weights and {bytes_text(BASE_BYTES)} for vLLM "
            f"itself, and the slice has not that much. Give it needs.memory: {bytes_text(least)} or more, or a "
            "smaller context"
        )
    return min(room, wanted)


def command(
    place: Place,
    carved: Slice,
    context: int,
    sessions: int,
    options: VllmOptions,
    kv_cache_bytes: int | None,
    host_env: Mapping[str, str],
) -> Command:
    """`kv_cache_bytes`: None where the share of the GPUs decides."""
    argv = [
        place.python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        f"--model={place.model}",
        f"--served-model-name={NAME}",
        f"--uds={place.socket}",
        f"--max-model-len={context}",
        f"--max-num-seqs={sessions}",
        f"--seed={place.seed}",
        f"--dtype={options.dtype}",
        f"--block-size={options.block_size}",
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
        "--generation-config=vllm",  # what a request does not say, homeport has said
        '--structured-outputs-config={"backend": "guidance"}',
        "--disable-uvicorn-access-log",
        "--disable-fastapi-docs",
    ]
    batch = options.batch or (None if carved.gpus else CPU_BATCH)
    if batch is not None:
        argv.append(f"--max-num-batched-tokens={max(batch, sessions)}")
    if not options.compile:
        argv.append("--enforce-eager")
    if kv_cache_bytes is not None:
        argv.append(f"--kv-cache-memory-bytes={kv_cache_bytes}")
    if carved.gpus:
        argv += [
            f"--gpu-memory-utilization={gpu_share(carved):.3f}",
            f"--tensor-parallel-size={len(carved.gpus)}",
        ]
    return Command(tuple(argv), _environment(place, carved, host_env))


def gpu_share(carved: Slice) -> float:
    """The part of each GPU's memory that vLLM is told to take: as much as the slice holds of it."""
    return GPU_USED * min((hold.share for hold in carved.gpu_holds), default=1.0)


def _environment(place: Place, carved: Slice, host_env: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in host_env.items() if name in KEPT or name.startswith(KEPT_FROM)}
    threads = str(max(1, len(carved.cores)))
    return {
        **kept,
        "TMPDIR": place.folder,
        "VLLM_RPC_BASE_PATH": place.folder,
        "VLLM_API_KEY": place.api_key,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_CONFIGURE_LOGGING": "1",
        "VLLM_LOGGING_COLOR": "0",
        "VLLM_LOGGING_CONFIG_PATH": f"{place.folder}/{LOGGING_FILE}",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": threads,
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, omp_cpus(carved))) or "nobind",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "PYTHONUNBUFFERED": "1",
    }


def omp_cpus(carved: Slice) -> tuple[int, ...]:
    """One logical CPU for each core of the slice: a thread each."""
    named = [core for core in carved.cores if core in carved.cpus]
    return tuple(named) if len(named) == len(carved.cores) else carved.cpus[: max(1, len(carved.cores))]


LOGGING_FILE = "logging.json"
LOGGING: Mapping[str, Any] = {
    "version": 1,
    "formatters": {"plain": {"format": "%(levelname)s %(asctime)s %(message)s"}},
    "handlers": {
        "out": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stdout"}
    },
    "loggers": {
        "vllm": {"handlers": ["out"], "level": "INFO", "propagate": False},
        # When its engine breaks it would print what was asked of it: stop strings, tools, schemas.
        "vllm.logging_utils.dump_input": {"level": "CRITICAL", "handlers": [], "propagate": False},
    },
}
"""What LOGGING_FILE in its folder holds."""
STEPS = (
    ("Starting vLLM", 0.02),
    ("vLLM server version", 0.05),
    ("vLLM API server version", 0.05),
    ("Resolved architecture", 0.1),
    ("Initializing a V1 LLM engine", 0.25),
    ("Starting to load model", 0.4),
    ("Loading safetensors", 0.5),
    ("Loading weights took", 0.7),
    ("Model loading took", 0.7),
    ("GPU KV cache size", 0.8),
    ("CPU KV cache size", 0.8),
    ("init engine", 0.9),
    ("Application startup complete", 0.95),
)
"""What its log says on its way, and how far it is then."""


def progress(line: str, before: float) -> float:
    """How far a start is after this line of its log, 0 to 1; never less than before."""
    found = [share for words, share in STEPS if words in line]
    return max(before, *found) if found else before
