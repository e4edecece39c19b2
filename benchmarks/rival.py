"""llama.cpp's own C++ server, as PyPI's xllamacpp has it. A worker (worker.py): says its address, then serves.

    python -m benchmarks.rival MODEL.gguf --context N --slots N --threads N

All that is not named here is as that server has it by default.
"""

import argparse
import json
import sys

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = chosen.model
    params.n_ctx = chosen.context * chosen.slots
    params.n_parallel = chosen.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = chosen.threads
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
