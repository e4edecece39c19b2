"""JSON Schemas of the bodies that the OpenAPI description names. Pure; kept by hand.

Of a request: what is checked whichever model is asked. What else may stand in it, the references of OpenAI, Anthropic
and Ollama say. Of an answer: what is always there.
"""

from collections.abc import Mapping
from typing import Any

from serving.yielding import LONGEST_S

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
WHOLE: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
ANY: Schema = {}
OBJECT: Schema = {"type": "object"}


def record(required: Mapping[str, Schema], more: Mapping[str, Schema] | None = None) -> Schema:
    """An object; members that it does not name may be there."""
    found: dict[str, Any] = {"type": "object", "properties": {**required, **(more or {})}}
    return {**found, "required": sorted(required)} if required else found


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def listed(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items, **({"minItems": least} if least else {})}


def one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def maybe(schemas: Mapping[str, Schema]) -> dict[str, Schema]:
    """The same members, each of which may be null too: null counts as absent."""
    return {name: either(schema, {"type": "null"}) for name, schema in schemas.items()}


LEAST_ONE: Schema = {"type": "integer", "minimum": 1}
SAMPLING = {
    "stream": FLAG,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "seed": WHOLE,
    "stop": either(NAME, listed(NAME)),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "n": LEAST_ONE,
    "max_tokens": LEAST_ONE,
}
CONTENT = either(TEXT, listed(record({"type": one_of("text"), "text": TEXT}), 1))
MESSAGE = record({"role": one_of("system", "developer", "user"), "content": CONTENT})
TOLD_MESSAGE = record({"role": one_of("user", "assistant"), "content": CONTENT})
PROMPT = either(NAME, listed(NAME, 1), listed(COUNT, 1))
OPTIONS = record({}, {"temperature": number(0, 2), "seed": WHOLE, "num_predict": WHOLE})

CHAT = record(
    {"model": NAME, "messages": listed(MESSAGE, 1)},
    maybe({**SAMPLING, "max_completion_tokens": LEAST_ONE, "tools": listed(OBJECT), "logprobs": FLAG}),
)
COMPLETION = record({"model": NAME, "prompt": PROMPT}, maybe({**SAMPLING, "echo": FLAG}))
EMBEDDING = record(
    {"model": NAME, "input": PROMPT},
    maybe({"encoding_format": one_of("float", "base64"), "dimensions": LEAST_ONE}),
)
RESPONSE = record(
    {"model": NAME, "input": either(TEXT, listed(MESSAGE, 1))},
    maybe(
        {
            "instructions": TEXT,
            "max_output_tokens": LEAST_ONE,
            "previous_response_id": TEXT,
            "conversation": either(TEXT, record({"id": TEXT})),
            "store": FLAG,
            "stream": FLAG,
            "temperature": number(0, 2),
            "top_p": number(0, 1),
            "tools": listed(OBJECT),
        }
    ),
)
COUNTED = {"model": NAME, "messages": listed(TOLD_MESSAGE, 1)}
MESSAGES = record(
    {**COUNTED, "max_tokens": LEAST_ONE},
    {"system": CONTENT, "stream": FLAG, "temperature": number(0, 1), "stop_sequences": listed(NAME)},
)
COUNT_TOKENS = record(COUNTED, {"system": CONTENT})
OLLAMA_MORE = maybe(
    {"stream": FLAG, "options": OPTIONS, "think": FLAG, "format": either(one_of("json", ""), OBJECT)}
)
OLLAMA_MESSAGE = record({"role": one_of("system", "user", "assistant"), "content": TEXT})
OLLAMA_CHAT = record({"model": NAME}, {**OLLAMA_MORE, **maybe({"messages": listed(OLLAMA_MESSAGE)})})
OLLAMA_GENERATE = record({"model": NAME}, {**OLLAMA_MORE, **maybe({"prompt": TEXT, "system": TEXT})})
OLLAMA_EMBED = record({"model": NAME, "input": either(NAME, listed(NAME, 1))})
OLLAMA_EMBEDDINGS = record({"model": NAME, "prompt": NAME})
FOR_S = {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_S}
YIELD = {**record({}, {"for_s": FOR_S, "end": FLAG}), "additionalProperties": False}

CHOICE = record({"index": COUNT, "finish_reason": TEXT})
USAGE = record({"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT})
MADE = {"id": TEXT, "created": COUNT, "model": TEXT, "choices": listed(CHOICE, 1), "usage": USAGE}
CHAT_ANSWER = record({**MADE, "object": one_of("chat.completion")})
COMPLETION_ANSWER = record({**MADE, "object": one_of("text_completion")})
VECTOR = record({"index": COUNT, "embedding": either(TEXT, listed({"type": "number"}))})
EMBEDDING_ANSWER = record({"object": one_of("list"), "model": TEXT, "data": listed(VECTOR)})
RESPONSE_ANSWER = record(
    {
        "id": TEXT,
        "object": one_of("response"),
        "created_at": COUNT,
        "status": one_of("completed", "incomplete", "in_progress", "cancelled", "failed"),
        "model": TEXT,
        "output": listed(OBJECT),
    }
)
PAGE = record({"object": one_of("list"), "data": listed(OBJECT), "has_more": FLAG})
DELETED = record({"id": TEXT, "object": TEXT, "deleted": FLAG})
CONVERSATION = record({"id": TEXT, "object": one_of("conversation"), "created_at": COUNT, "metadata": OBJECT})
MESSAGE_ANSWER = record(
    {
        "id": TEXT,
        "type": one_of("message"),
        "role": one_of("assistant"),
        "model": TEXT,
        "content": listed(record({"type": TEXT})),
        "usage": record({"input_tokens": COUNT, "output_tokens": COUNT}),
    }
)
MODEL = record({"id": TEXT})
MODELS = record({"data": listed(MODEL)})
OLLAMA_MADE = {"model": TEXT, "created_at": TEXT, "done": FLAG}
OLLAMA_MODELS = record({"models": listed(record({"name": TEXT, "model": TEXT}))})
MACHINE_ANSWER = record({"machine": TEXT})

ERROR = record({"error": record({"message": TEXT, "type": TEXT, "param": ANY, "code": ANY})})
ANTHROPIC_ERROR = record({"type": one_of("error"), "error": record({"type": TEXT, "message": TEXT})})
OLLAMA_ERROR = record({"error": TEXT})
