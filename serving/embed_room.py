"""How many tokens of a text one decode for embeddings takes, and what its outputs take in memory. Pure."""

USUAL_TOKENS = 2048
"""A context for texts of so many tokens is kept; for a longer one another is made, and freed after it."""

OUTPUT_BYTES = 32 * 2**20
"""Room for the logits that llama.cpp works out beside every embedding, whether they are wanted or not."""


def rows_of(batch: int, vocabulary: int) -> int:
    """Tokens of a text that one decode takes."""
    return max(1, min(batch, OUTPUT_BYTES // (4 * vocabulary)))


def output_bytes(rows: int, vocabulary: int, width: int) -> int:
    """What llama.cpp keeps the outputs of `rows` tokens in. Not told when a context is made, as it grows then."""
    return 4 * rows * (vocabulary + width)
