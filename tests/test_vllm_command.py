"""How vLLM is started: its command line, its environment, its memory."""

from dataclasses import replace

import pytest

from cluster.gpu_parts import hold_of
from cluster.machine import GIB, Gpu
from cluster.slices import Slice
from serving.hf_config import read_config
from serving.vllm_command import LOGGING, NoRoom, Place, command, kv_bytes, omp_cpus, progress
from serving.vllm_options import VllmOptions
from tests.hf_folders import CONFIG

PLACE = Place("/env/bin/python", "/models/m", "/tmp/x/api", "/tmp/x", "secret-key", 7)
CARVED = Slice((2, 3), (2, 3, 6, 7), (), 4 * GIB)
MODEL = read_config(CONFIG, {}, 100 * 1024**2)
USUAL = VllmOptions()
KEPT = {"PATH": "/bin", "HOME": "/home/x", "CUDA_VISIBLE_DEVICES": ""}


def test_its_key_stands_in_the_environment_and_not_in_the_command_line() -> None:
    made = command(PLACE, CARVED, 2048, 2, USUAL, GIB, KEPT)
    assert made.env["VLLM_API_KEY"] == "secret-key"
    assert not any("secret-key" in word for word in made.argv)
    assert made.argv[:3] == ("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server")


def test_it_listens_on_a_socket_only_tells_nobody_and_fetches_nothing() -> None:
    made = command(PLACE, CARVED, 2048, 2, USUAL, GIB, KEPT)
    assert "--uds=/tmp/x/api" in made.argv
    assert not any(word.startswith(("--host", "--port")) for word in made.argv)
    told = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "0",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
    }
    assert told.items() <= made.env.items()


def test_nothing_else_of_the_hosts_environment_reaches_it() -> None:
    given = {**KEPT, "VLLM_USE_SOMETHING": "1", "PYTHONPATH": "/x", "HF_TOKEN": "t", "OMP_SCHEDULE": "static"}
    env = command(PLACE, CARVED, 2048, 2, USUAL, GIB, given).env
    assert not {"VLLM_USE_SOMETHING", "PYTHONPATH", "HF_TOKEN"} & env.keys()
    assert {"PATH": "/bin", "OMP_SCHEDULE": "static", "TMPDIR": "/tmp/x"}.items() <= env.items()


def test_a_thread_for_each_core_of_the_slice() -> None:
    env = command(PLACE, CARVED, 2048, 2, USUAL, GIB, KEPT).env
    assert (env["OMP_NUM_THREADS"], env["VLLM_CPU_OMP_THREADS_BIND"]) == ("2", "2,3")
    assert omp_cpus(Slice((0, 1), (4, 5), (), 1)) == (4, 5)  # the cores' first CPUs may not be used
    assert omp_cpus(Slice((), (), (), 1)) == ()


def test_options_become_flags() -> None:
    options = VllmOptions(dtype="float32", batch=1, block_size=64, compile=True)
    argv = command(PLACE, CARVED, 2048, 4, options, GIB, KEPT).argv
    assert {
        "--dtype=float32",
        "--block-size=64",
        "--max-num-batched-tokens=4",
        f"--kv-cache-memory-bytes={GIB}",
    } <= set(argv)
    assert "--enforce-eager" not in argv
    assert "--max-num-batched-tokens=512" in command(PLACE, CARVED, 2048, 4, USUAL, GIB, KEPT).argv
    assert "--enforce-eager" in command(PLACE, CARVED, 2048, 4, USUAL, GIB, KEPT).argv


def test_gpus_get_a_share_and_one_process_each() -> None:
    argv = command(PLACE, replace(CARVED, gpus=("GPU-a", "GPU-b")), 2048, 4, USUAL, None, KEPT).argv
    assert {"--gpu-memory-utilization=0.920", "--tensor-parallel-size=2"} <= set(argv)
    assert not any(word.startswith(("--kv-cache", "--max-num-batched")) for word in argv)


def test_of_a_shared_gpu_it_takes_the_slices_part() -> None:
    card = Gpu("GPU-a", "card", 24 * GIB)
    shared = replace(CARVED, gpus=("GPU-a",), gpu_holds=(hold_of(card, 10),))
    assert "--gpu-memory-utilization=0.460" in command(PLACE, shared, 2048, 4, USUAL, None, KEPT).argv


def test_the_cache_holds_what_all_sessions_need_as_far_as_the_slice_has_it() -> None:
    each = 2048 * MODEL.kv_bytes_per_token
    spare = 32 * MODEL.kv_bytes_per_token
    assert kv_bytes(CARVED, MODEL, 2048, 3, USUAL) == 3 * each + spare
    small = replace(CARVED, memory_bytes=2 * GIB + MODEL.weight_bytes + 2 * each)
    assert kv_bytes(small, MODEL, 2048, 3, USUAL) == 2 * each
    assert kv_bytes(CARVED, MODEL, 2048, 3, VllmOptions(kv_memory=GIB // 2)) == GIB // 2


def test_a_slice_without_room_for_one_session_is_refused_with_what_it_takes() -> None:
    with pytest.raises(NoRoom, match=r"needs\.memory: 2\.1 GiB"):
        kv_bytes(replace(CARVED, memory_bytes=GIB), MODEL, 2048, 1, USUAL)
    with pytest.raises(NoRoom, match=r"options\.kv_memory"):
        kv_bytes(CARVED, MODEL, 2048, 1, VllmOptions(kv_memory=1000))


def test_a_start_goes_forwards_only() -> None:
    share = 0.0
    for line in (
        "INFO Starting to load model x",
        "nothing",
        "Resolved architecture: L",
        "init engine took 3 s",
    ):
        before, share = share, progress(line, share)
        assert share >= before
    assert share == 0.9


def test_what_was_asked_is_not_printed_when_its_engine_breaks() -> None:
    made = command(PLACE, CARVED, 2048, 2, USUAL, GIB, KEPT)
    assert made.env["VLLM_LOGGING_CONFIG_PATH"] == f"{PLACE.folder}/logging.json"
    assert LOGGING["loggers"]["vllm.logging_utils.dump_input"]["level"] == "CRITICAL"
