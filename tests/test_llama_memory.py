"""serving/llama_memory.py: what llama.cpp logs, as numbers, and sums that do not fit."""

from serving.engine import MemoryUse
from serving.llama_memory import MIB, foreseen, measured, too_much

FORESEEN = """
llama_context:        CPU  output buffer size =     4.00 MiB
llama_kv_cache:        CPU KV buffer size =     0.00 MiB
llama_kv_cache: size =   24.00 MiB (  2048 cells,   3 layers,  4/4 seqs), K (f16):   12.00 MiB, V (f16):   12.00 MiB
llama_kv_cache:        CPU KV buffer size =     0.00 MiB
llama_kv_cache: size =   45.00 MiB (   768 cells,  15 layers,  4/4 seqs), K (f16):   22.50 MiB, V (f16):   22.50 MiB
sched_reserve:        CPU compute buffer size =    10.25 MiB
""".splitlines()

MEASURED = """
print_info: file size   = 235.16 MiB (7.36 BPW)
load_tensors:   CPU_Mapped model buffer size =   235.00 MiB
load_tensors:   CPU_REPACK model buffer size =    12.50 MiB
load_tensors:        CUDA0 model buffer size =   100.00 MiB
llama_adapter_lora_init_impl:        CPU LoRA buffer size =     1.50 MiB
llama_context:        CPU  output buffer size =     4.00 MiB
llama_kv_cache:      CUDA0 KV buffer size =    24.00 MiB
llama_kv_cache: size =   24.00 MiB (  2048 cells,   3 layers,  4/4 seqs), K (f16):   12.00 MiB, V (f16):   12.00 MiB
llama_memory_recurrent:        CPU RS buffer size =     2.00 MiB
sched_reserve:  CUDA_Host compute buffer size =     8.00 MiB
""".splitlines()


def test_a_context_that_takes_no_memory_says_what_it_would_take() -> None:
    assert foreseen(FORESEEN) == MemoryUse(0, 69 * MIB, round(14.25 * MIB))


def test_every_buffer_that_was_made_counts_once_on_whatever_device() -> None:
    assert measured(MEASURED) == MemoryUse(349 * MIB, 26 * MIB, 12 * MIB)
    assert measured([]) == MemoryUse(0, 0, 0)


def test_a_sum_that_fits_is_not_refused() -> None:
    assert too_much("m.gguf", [("weights", 60 * MIB), ("context", 40 * MIB)], 100 * MIB) is None


def test_a_sum_that_does_not_fit_names_each_part_and_what_would_do() -> None:
    message = too_much("m.gguf", [("weights", 60 * MIB), ("2 x 8192 tokens of context", 41 * MIB)], 100 * MIB)
    assert message is not None
    assert "it takes 101 MiB (60 MiB for weights, 41 MiB for 2 x 8192 tokens of context)" in message
    assert "100 MiB are free" in message
    assert "needs.memory: 101MiB" in message
