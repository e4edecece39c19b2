"""Makes of a GGUF a folder as Hugging Face has it: `python vllm_convert.py MODEL.gguf FOLDER`.

Run by the interpreter of vLLM's environment, which has transformers and torch, and nothing of homeport. vLLM reads no
GGUF, and transformers reads one but refuses to save it as the quantized model that it takes it for: so the weights go
into a fresh model of the same shape, in bfloat16.
"""

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any


def convert(source: Path, folder: Path) -> None:
    """`folder` is there once it is whole, and not before."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    where, name = str(source.parent), source.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(where, gguf_file=name)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.bfloat16)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    fresh = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = loaded.generation_config
    half = folder.with_name(folder.name + ".half")
    shutil.rmtree(half, ignore_errors=True)
    fresh.save_pretrained(half)
    tokenizer.save_pretrained(half)
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
