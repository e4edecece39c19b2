"""The models that `homeport fit` is measured on: random weights, 7 million to 1.2 billion parameters.

Written once, one after the other, into a folder of the caller; each has another kind of weights, and they differ in
how many heads share keys and values, whether the output is the embeddings, windows and experts.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.random_gguf import Shape, write

SHAPES = (
    Shape("10M F16, every head its own keys", 256, 6, 4, 4, 704, 8192, "F16"),
    Shape("70M Q8_0, 2 heads a key, output of its own", 512, 12, 8, 4, 1536, 32000, "Q8_0", output="Q8_0"),
    Shape("140M Q4_0, 3 heads a key", 768, 16, 12, 4, 2048, 49152, "Q4_0"),
    Shape(
        "180M Q5_0, Gemma's windows of 512", 640, 18, 4, 1, 2048, 131072, "Q5_0",
        architecture="gemma3", head=256, window=512,
    ),
    Shape(
        "440M Q4_0 with 16 experts, 4 used", 768, 10, 12, 4, 1024, 32000, "Q4_0",
        output="Q6_K", experts=16, experts_used=4,
    ),
    Shape("1.2B Q4_K, 4 heads a key", 2048, 16, 32, 8, 8192, 128256, "Q4_K", embedding="Q6_K"),
)  # fmt: skip


def files() -> Iterator[tuple[Shape, Path]]:
    """Each shape as a file that is there until the next one."""
    for shape in SHAPES:
        with TemporaryDirectory(prefix="homeport-fit-") as folder:
            yield shape, write(Path(folder) / "model.gguf", shape)
