"""From a checked request to what the engine is asked for: prompts as token ids, constraints, parsers of answers.

Everything here may run on any thread, needs a loaded engine, and raises Problem. It waits for nobody.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

from serving.answer_form import Form
from serving.answering import Inputs, Prepared
from serving.asgi import Problem
from serving.chat_messages import Message, needs_tools
from serving.chat_request import ChatRequest
from serving.chat_tools import Tool
from serving.chat_wire import FirstCallOnly, NewParser, ReadChat, StreamedChat, WholeChat
from serving.completion_request import CompletionRequest, Prompt
from serving.completion_wire import StreamedCompletion, WholeCompletion
from serving.deltas import AnswerParser, PlainParser
from serving.desk import Desk
from serving.embedding_request import EmbeddingRequest
from serving.embedding_wire import Embeddings
from serving.engine import PromptError, PromptTooLong, Sampling, Turn
from serving.openai_wire import Envelope
from serving.routing import Ask
from serving.token_requests import TokenizeRequest

T = TypeVar("T")


def prepare_chat(desk: Desk, ask: Ask, request: ChatRequest) -> Prepared:
    """One turn."""
    engine = desk.engine
    check_biases(desk, request.sampling)
    tools = request.tool_use.tools
    _check_tools(desk, tools, request.messages)
    prompt = _fitting(desk, "messages", lambda: engine.prompt(request.messages, tools, request.variables))
    prompt_end = _prompt_end(desk, request)
    parser = _parser(desk, request, prompt_end)
    turn = Turn(
        id=0,
        sequence=0,
        prompt=prompt,
        max_tokens=request.max_tokens,
        sampling=request.sampling,
        stop=request.stop,
        choices=request.choices,
        logprobs=request.logprobs,
        constraint=_constraint(desk, request, prompt_end),
        special=parser is not None and bool(engine.format.special),
        text=True,
        scope=ask.scope,
    )
    envelope = _envelope("chatcmpl-", request)
    return Prepared((turn,), _chat_form(request, envelope, parser))


def prepare_completions(desk: Desk, ask: Ask, request: CompletionRequest) -> Prepared:
    """A turn for each prompt."""
    check_biases(desk, request.sampling)
    turns = tuple(
        Turn(
            id=0,
            sequence=0,
            prompt=text_tokens(desk, text, "prompt"),
            max_tokens=request.max_tokens,
            sampling=request.sampling,
            stop=request.stop,
            choices=request.choices,
            logprobs=request.logprobs,
            text=isinstance(text, str),
            scope=ask.scope,
        )
        for text in request.prompts
    )
    echoes = [_echo(desk, text) if request.echo else "" for text in request.prompts]
    envelope = _envelope("cmpl-", request)
    make = StreamedCompletion if request.stream else WholeCompletion
    return Prepared(turns, make(envelope, request.choices, echoes, request.logprobs is not None))


def prepare_embeddings(desk: Desk, request: EmbeddingRequest) -> Prepared:
    """All texts at once."""
    facts = desk.engine.facts
    if facts.embedding == 0:
        message = f"the model '{request.model}' makes no embeddings; ask for one that does"
        raise Problem(400, message, "unsupported_parameter", "model")
    if request.dimensions not in (None, facts.embedding):
        message = f"'dimensions' can only be {facts.embedding}, which is what this model has; remove it"
        raise Problem(400, message, "unsupported_parameter", "dimensions")
    inputs: Inputs = tuple(text_tokens(desk, text, "input") for text in request.inputs)
    return Prepared((inputs,), Embeddings(request.model, request.form == "base64"))


def text_tokens(desk: Desk, text: Prompt, param: str) -> tuple[int, ...]:
    """A text's token ids, or the ids that it is; not empty, and not more than the context holds."""
    engine, facts = desk.engine, desk.engine.facts
    if isinstance(text, str):
        # What a client writes into an embedding is text; a prompt is written for the model.
        special = param == "prompt"
        tokens = _fitting(desk, param, lambda: engine.tokenize(text, special), whole=param == "input")
    else:
        tokens = _fitting(desk, param, lambda: text, whole=param == "input")
        unknown = next((token for token in tokens if token >= facts.vocabulary), None)
        if unknown is not None:
            message = (
                f"'{param}' holds the token {unknown}; this model's tokens are 0 to {facts.vocabulary - 1}"
            )
            raise Problem(400, message, "invalid_value", param)
    if not tokens:
        raise Problem(400, f"'{param}' has no tokens; send a text", "invalid_value", param)
    return tokens


def count_tokens(desk: Desk, request: TokenizeRequest) -> tuple[int, ...]:
    """What a prompt's text, or a conversation, is to the model."""
    engine, text = desk.engine, request.text
    if text is not None:
        return _made(desk, "prompt", lambda: engine.tokenize(text, special=True))
    _check_tools(desk, request.tools, request.messages)
    variables = dict(request.variables)
    return _made(desk, "messages", lambda: engine.prompt(request.messages, request.tools, variables))


def text_of_tokens(desk: Desk, tokens: Sequence[int], param: str = "tokens") -> str:
    return _asked(param, lambda: desk.engine.detokenize(tokens))


def check_biases(desk: Desk, sampling: Sampling) -> None:
    vocabulary = desk.engine.facts.vocabulary
    unknown = [token for token, _ in sampling.logit_bias if token >= vocabulary]
    if unknown:
        message = f"'logit_bias' names the token {unknown[0]}; this model's tokens are 0 to {vocabulary - 1}"
        raise Problem(400, message, "invalid_value", "logit_bias")


def _fitting(
    desk: Desk, param: str, make: Callable[[], tuple[int, ...]], *, whole: bool = False
) -> tuple[int, ...]:
    """`whole`: the tokens may fill the context, as no answer follows."""
    context = desk.engine.facts.context
    prompt = _made(desk, param, make)
    if len(prompt) > context or (len(prompt) == context and not whole):
        raise _too_long(param, str(len(prompt)), context)
    return prompt


def _made(desk: Desk, param: str, make: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    try:
        return make()
    except PromptTooLong as error:
        raise _too_long(param, f"at least {error.at_least}", desk.engine.facts.context) from None
    except PromptError as error:
        wrong = error.param if param == "messages" else param
        raise Problem(400, str(error), "invalid_prompt", wrong) from None


def _too_long(param: str, tokens: str, context: int) -> Problem:
    what = {
        "messages": ("the messages are", ", the answer included; shorten the conversation"),
        "prompt": ("the prompt is", ", the answer included; shorten it"),
        "input": ("a text of the input is", "; shorten it or send it in parts"),
    }
    subject, rest = what[param]
    message = f"{subject} {tokens} tokens long, and this model's context holds {context}{rest}"
    return Problem(400, message, "context_length_exceeded", param)


def _check_tools(desk: Desk, tools: Sequence[Tool], messages: tuple[Message, ...]) -> None:
    """Raises Problem for tools, and messages about them, where the model's template knows none."""
    known = desk.engine.format
    if known is not None and known.knows_tools:
        return
    if tools:
        message = (
            "this model cannot call tools: its chat template does not know them; leave 'tools' out, "
            "or ask for another model"
        )
        raise Problem(400, message, "unsupported_parameter", "tools")
    where = needs_tools(messages)
    if where is not None:
        message = f"'{where}' is about a tool, and this model's chat template does not know any"
        raise Problem(400, message, "unsupported_parameter", where)


def _echo(desk: Desk, text: Prompt) -> str:
    return text if isinstance(text, str) else text_of_tokens(desk, text, "prompt")


def _prompt_end(desk: Desk, request: ChatRequest) -> str:
    known = desk.engine.format
    if known is None:
        return ""
    end: str = known.prompt_end(request.messages, request.tool_use.tools, request.variables)
    return end


def _parser(desk: Desk, request: ChatRequest, prompt_end: str) -> NewParser | None:
    """Makes parsers of the answers; None where there is nothing to find in them."""
    known = desk.engine.format
    if known is None:
        return None
    use = request.tool_use

    def new_parser() -> AnswerParser:
        parser: AnswerParser = known.parser(prompt_end, use.callable)
        return parser if use.parallel or not use.callable else FirstCallOnly(parser)

    return None if new_parser().plain else new_parser


def _constraint(desk: Desk, request: ChatRequest, prompt_end: str) -> object:
    """What the answer must match; None: anything goes."""
    engine, use, known = desk.engine, request.tool_use, desk.engine.format
    if use.choice == "required":
        return _asked(
            "tools",
            lambda: engine.constraint(
                known.call_grammar(use.callable, use.named or "required", use.parallel, prompt_end)
            ),
        )
    output = request.json_output
    if output is None:
        return None
    of_json = _asked(
        "response_format", lambda: engine.constraint(known.json_grammar(output.schema, prompt_end))
    )
    if not use.callable:
        return of_json
    return _asked(
        "tools",
        lambda: engine.constraint(
            known.call_or_json_grammar(use.callable, use.parallel, output.schema, prompt_end)
        ),
    )


def _asked(param: str, make: Callable[[], T]) -> T:
    """What the engine gives for this field of the request."""
    try:
        return make()
    except (PromptError, ValueError, RecursionError) as error:
        raise Problem(400, f"'{param}' cannot be used: {error}", "invalid_value", param) from None


def _chat_form(request: ChatRequest, envelope: Envelope, parser: NewParser | None) -> Form:
    told = request.logprobs is not None
    if not request.stream:
        return WholeChat(envelope, parser or PlainParser, told)
    if parser is None and not told:
        return StreamedChat(envelope, request.choices)
    return ReadChat(envelope, request.choices, parser or PlainParser, told)


def _envelope(prefix: str, request: ChatRequest | CompletionRequest) -> Envelope:
    made = prefix + uuid.uuid4().hex, int(time.time())
    return Envelope(*made, request.model, request.include_usage, request.return_progress)
