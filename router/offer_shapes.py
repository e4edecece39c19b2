"""Models as clients of each API read them. Pure.

Sources: OpenAI's and Anthropic's API references (Models), OpenRouter's (`context_length`, `architecture`,
`supported_parameters`), vLLM (`max_model_len`), llama-server (`meta`), Ollama's docs/api.md and `api/types.go`.
"""

from typing import Any

from router.dialects.ollama import timestamp
from router.offers import Offer

OLLAMA = "0.12.11"
"""The version of Ollama whose API is spoken; clients look at it before they ask for what came with it."""
FAMILY = "homeport"
"""Where Ollama's clients look for the context: below the family that `general.architecture` names."""
PARAMETERS = {
    "chat": (
        *("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "logprobs", "top_logprobs"),
        *("frequency_penalty", "presence_penalty", "logit_bias"),
    ),
    "tools": ("tools", "tool_choice", "parallel_tool_calls"),
    "structured_outputs": ("response_format", "structured_outputs"),
    "reasoning": ("reasoning", "include_reasoning", "reasoning_effort"),
}
"""What a request may hold where a model has an ability, in OpenRouter's words."""
IN_OLLAMA = {"tools": "tools", "reasoning": "thinking", "embeddings": "embedding"}


def openai_json(offer: Offer, created_s: int) -> dict[str, Any]:
    """For `/v1/models`. What is not known yet is null."""
    context, can = offer.model.context, offer.abilities
    parameters = [name for ability, names in PARAMETERS.items() if can and ability in can for name in names]
    names = ("chat", "tools", "reasoning", "structured_outputs", "embeddings")
    abilities = {name: None if can is None else name in can for name in names}
    return {
        "id": offer.name,
        "object": "model",
        "created": created_s,
        "owned_by": "homeport",
        "context_length": context,
        "max_model_len": context,
        "meta": {"n_ctx": context, "n_ctx_train": context},
        "architecture": {
            "modality": "text->text",
            "input_modalities": ["text"],
            "output_modalities": ["text"],
        },
        "capabilities": {**abilities, "vision": False},
        "supported_parameters": None if can is None else parameters,
        "homeport": {
            "engine": offer.model.engine,
            "machines": {home.machine: home.state for home in offer.homes},
        },
    }


def anthropic_json(offer: Offer, created_s: int) -> dict[str, Any]:
    """For `/v1/models`, asked as Anthropic's clients do."""
    return {
        "type": "model",
        "id": offer.name,
        "display_name": offer.name,
        "created_at": timestamp(created_s),
        "max_input_tokens": offer.model.context,
        "max_tokens": offer.model.context,
        "lifecycle": "active",
    }


def ollama_json(offer: Offer, created_s: int, digest: str | None) -> dict[str, Any]:
    """For `/api/tags` and `/api/ps`. How large a model is the router does not know. `digest`: another one once the
    model, or how it is served, is another."""
    known = {} if digest is None else {"digest": digest}
    return {
        "name": offer.name,
        "model": offer.name,
        "modified_at": timestamp(created_s),
        **known,
        "details": details_json(offer),
    }


def details_json(offer: Offer) -> dict[str, Any]:
    return {"parent_model": "", "format": offer.model.engine, "family": FAMILY, "families": [FAMILY]}


def shown_json(offer: Offer, created_s: int) -> dict[str, Any]:
    """For `/api/show`."""
    can = offer.abilities or frozenset()
    return {
        "modified_at": timestamp(created_s),
        "details": details_json(offer),
        "model_info": {
            "general.architecture": FAMILY,
            "general.basename": offer.model.name,
            f"{FAMILY}.context_length": offer.model.context,
        },
        "capabilities": ["completion", *(said for ability, said in IN_OLLAMA.items() if ability in can)],
    }
