"""vLLM for real, beside llama.cpp: `make test-vllm` sets it up and runs these."""
