"""A body of the embeddings endpoint, checked and frozen.

Pure: takes what a JSON reader made of the body. Limits that need the model are checked elsewhere.
"""

from dataclasses import dataclass
from typing import Literal

from serving.completion_request import Prompt, read_texts
from serving.request_fields import BadRequest, missing, read_fields, read_model, whole

MAX_INPUTS = 2048

SUPPORTED = frozenset({"dimensions", "encoding_format", "input", "model"})
"""Parameters that are read and checked."""

HARMLESS = frozenset({"metadata", "session_id", "user"})
"""Parameters that change nothing about the answer: accepted and ignored."""

UNSUPPORTED = frozenset({"input_type", "messages", "prompt", "stream", "truncate_prompt_tokens"})
"""Known parameters that do not work here: refused unless null, false, 0 or empty."""


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts that are to become vectors."""

    model: str
    inputs: tuple[Prompt, ...]
    """Not empty, nor is any of them."""
    form: Literal["float", "base64"]
    dimensions: int | None
    """What the client expects; None: whatever the model has."""


def read_embedding_request(body: object) -> EmbeddingRequest:
    """Check a decoded body. Raises BadRequest with the field at fault; null counts as absent."""
    fields = read_fields(body, SUPPORTED, HARMLESS, UNSUPPORTED)
    model = read_model(fields)
    given = fields.get("input")
    if given is None:
        raise missing("input")
    inputs = read_texts(given, "input")
    if len(inputs) > MAX_INPUTS:
        raise BadRequest(f"'input' may hold at most {MAX_INPUTS} texts, not {len(inputs)}", "input")
    form = fields.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise BadRequest("'encoding_format' must be float or base64", "encoding_format")
    dimensions = whole(fields, "dimensions", 1, 2**31 - 1) if "dimensions" in fields else None
    return EmbeddingRequest(model, inputs, form, dimensions)
