"""What schemathesis cannot know of an installation: its model's name, and how little a turn should say. Loaded by
schemathesis itself (`SCHEMATHESIS_HOOKS`)."""

import os
from typing import Any

import schemathesis

FEW = 4
"""Tokens of an answer: what is tried is the way there."""
LIMITS = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
MACHINES = "/api/machines/{name}/"


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: dict[str, Any]) -> None:
    """Bodies that are right so far get the model that is served, and a limit; actions the machine that is there, every
    other time."""
    body, path = case.body, case.operation.path
    if isinstance(body, dict) and body.get("model") and isinstance(body["model"], str):
        body["model"] = os.environ["COMPAT_MODEL"]
        if (limit := LIMITS.get(path)) is not None and isinstance(body.get(limit), int | None):
            body[limit] = min(body.get(limit) or FEW, FEW)
        elif path in ("/api/chat", "/api/generate") and isinstance(body.get("options"), dict | None):
            body["options"] = {**(body.get("options") or {}), "num_predict": FEW}
    name = case.path_parameters.get("name") if isinstance(case.path_parameters, dict) else None
    if path.startswith(MACHINES) and isinstance(name, str) and len(name) % 2:
        case.path_parameters["name"] = os.environ["COMPAT_MACHINE"]
