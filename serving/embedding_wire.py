"""Embeddings in OpenAI's shape. Pure."""

import base64
import struct
from typing import Any

from serving.answer_form import Form
from serving.engine import Embedded, Usage
from serving.openai_wire import Outcome, compact_json


class Embeddings(Form):
    """One body with all vectors, in the order of the inputs."""

    def __init__(self, model: str, encoded: bool) -> None:
        """`encoded`: vectors are sent as base64 of little-endian float32 and not as numbers."""
        self._model = model
        self._encoded = encoded
        self._vectors: list[bytes] = []

    def embedded(self, event: Embedded) -> None:
        self._vectors += event.vectors

    def end(self, usage: Usage, outcome: Outcome) -> bytes:
        data = [
            {"object": "embedding", "index": index, "embedding": self._value(vector)}
            for index, vector in enumerate(self._vectors)
        ]
        return compact_json(
            {
                "object": "list",
                "data": data,
                "model": self._model,
                "usage": {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt},
                "homeport": outcome.to_json(),
            }
        ).encode()

    def _value(self, vector: bytes) -> Any:
        if self._encoded:
            return base64.b64encode(vector).decode()
        return list(struct.unpack(f"<{len(vector) // 4}f", vector))
