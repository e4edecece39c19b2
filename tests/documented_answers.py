"""Answers in the forms that the families' makers document, with what they say."""

from tests.answer_reading import Answer

WEATHER = '{"location": "Paris, France", "unit": "celsius"}'
BERLIN = '{"location": "Berlin, Germany", "unit": "celsius"}'
DEEPSEEK = str.maketrans({"{": "<｜", "}": "｜>", " ": "▁"})  # noqa: RUF001


def deepseek(words: str) -> str:
    return f"{{{words}}}".translate(DEEPSEEK)


# (template, where this form is documented, an answer in it, what the answer says)
DOCUMENTED: list[tuple[str, str, str, Answer]] = [
    (
        "smollm2_tools",
        "huggingface.co/NousResearch/Hermes-2-Pro-Llama-3-8B: arguments before the name",
        '<tool_call>\n{"arguments": {"symbol": "TSLA"}, "name": "get_stock_fundamentals"}\n</tool_call>',
        Answer(calls=[("get_stock_fundamentals", '{"symbol": "TSLA"}')]),
    ),
    (
        "smollm2_tools",
        "qwen.readthedocs.io, Function Calling: two calls",
        (
            f'<tool_call>\n{{"name": "get_weather", "arguments": {WEATHER}}}\n</tool_call>\n'
            f'<tool_call>\n{{"name": "get_weather", "arguments": {BERLIN}}}\n</tool_call>'
        ),
        Answer(calls=[("get_weather", WEATHER), ("get_weather", BERLIN)]),
    ),
    (
        "hermes_thinking",
        "huggingface.co/Qwen/Qwen3-8B: reasoning, then words, then a call",
        (
            f"<think>\nWeather? A tool.\n</think>\n\nLet me see.\n"
            f'<tool_call>\n{{"name": "get_weather", "arguments": {WEATHER}}}\n</tool_call>'
        ),
        Answer("Let me see.", "Weather? A tool.", [("get_weather", WEATHER)]),
    ),
    (
        "qwen_coder",
        "huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct, chat_template.jinja",
        (
            "I'll look.\n<tool_call>\n<function=get_user_info>\n<parameter=user_id>\n7890\n</parameter>\n"
            '<parameter=special>\nblack\n  "or" <b>\n</parameter>\n</function>\n</tool_call>'
        ),
        Answer(
            "I'll look.", "", [("get_user_info", '{"user_id": 7890, "special": "black\\n  \\"or\\" <b>"}')]
        ),
    ),
    (
        "llama3",
        "meta-llama/llama-models, llama3_1/prompt_format.md: JSON based tool calling",
        f'<|python_tag|>{{"type": "function", "name": "get_weather", "parameters": {WEATHER}}}',
        Answer(calls=[("get_weather", WEATHER)]),
    ),
    (
        "llama3",
        "the chat template of Llama-3.2-3B-Instruct: without a marker",
        f'{{"name": "get_weather", "parameters": {WEATHER}}}',
        Answer(calls=[("get_weather", WEATHER)]),
    ),
    (
        "llama3",
        "meta-llama/llama-models, llama3_1/prompt_format.md: built-in tools",
        '<|python_tag|>brave_search.call(query="current weather in Menlo Park, California")',
        Answer(calls=[("brave_search", '{"query": "current weather in Menlo Park, California"}')]),
    ),
    (
        "llama3",
        "meta-llama/llama-models, llama3_2/text_prompt_format.md: zero shot function calling",
        "[get_weather(location='San Francisco', unit='celsius'), get_weather(location='Seattle', unit='celsius')]",
        Answer(
            calls=[
                ("get_weather", '{"location": "San Francisco", "unit": "celsius"}'),
                ("get_weather", '{"location": "Seattle", "unit": "celsius"}'),
            ]
        ),
    ),
    (
        "llama3",
        "meta-llama/llama-models, llama3_2/text_prompt_format.md: the same in history",
        "<|python_tag|>[get_user_info(user_id=7890, special='black')]",
        Answer(calls=[("get_user_info", '{"user_id": 7890, "special": "black"}')]),
    ),
    (
        "mistral_v3",
        "huggingface.co/mistralai/Mistral-7B-Instruct-v0.3 and mistral-common's tokenizer v3",
        (
            f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {WEATHER}}}, '
            f'{{"name": "get_weather", "arguments": {BERLIN}, "id": "VvvODy9mT"}}]'
        ),
        Answer(calls=[("get_weather", WEATHER), ("get_weather", BERLIN)]),
    ),
    (
        "mistral_thinking",
        "mistral-common's tokenizers v11 (with an id) and v13",
        (
            f"[THINK]The weather, twice.[/THINK]Of course.[TOOL_CALLS]get_weather[ARGS]{WEATHER}"
            f"[TOOL_CALLS]get_weather[CALL_ID]VvvODy9mT[ARGS]{BERLIN}"
        ),
        Answer("Of course.", "The weather, twice.", [("get_weather", WEATHER), ("get_weather", BERLIN)]),
    ),
    (
        "deepseek_v3",
        "huggingface.co/deepseek-ai/DeepSeek-V3-0324, tokenizer_config.json",
        deepseek("tool calls begin")
        + "\n".join(
            f"{deepseek('tool call begin')}function{deepseek('tool sep')}get_weather\n```json\n{arguments}\n```"
            + deepseek("tool call end")
            for arguments in (WEATHER, BERLIN)
        )
        + deepseek("tool calls end"),
        Answer(calls=[("get_weather", WEATHER), ("get_weather", BERLIN)]),
    ),
    (
        "deepseek_v31",
        "huggingface.co/deepseek-ai/DeepSeek-V3.1, ToolCall: chained without separators",
        deepseek("tool calls begin")
        + "".join(
            f"{deepseek('tool call begin')}get_weather{deepseek('tool sep')}{arguments}{deepseek('tool call end')}"
            for arguments in (WEATHER, BERLIN)
        )
        + deepseek("tool calls end"),
        Answer(calls=[("get_weather", WEATHER), ("get_weather", BERLIN)]),
    ),
    (
        "gemma_json",
        "ai.google.dev/gemma/docs/capabilities/function-calling: JSON",
        f'{{"name": "get_weather", "parameters": {WEATHER}}}',
        Answer(calls=[("get_weather", WEATHER)]),
    ),
    (
        "gemma_json",
        "the same guide, fenced as Gemma likes to",
        f'```json\n{{"name": "get_weather", "parameters": {WEATHER}}}\n```',
        Answer(calls=[("get_weather", WEATHER)]),
    ),
    (
        "gemma_json",
        "ai.google.dev/gemma/docs/capabilities/function-calling: Python",
        '[get_weather(location="Paris, France", unit="celsius")]',
        Answer(calls=[("get_weather", WEATHER)]),
    ),
    (
        "gemma_code",
        "Google's guides for Gemma 3: a block named tool_code",
        'Let me see.\n```tool_code\nget_weather(location="Paris, France", unit="celsius")\n```',
        Answer("Let me see.", "", [("get_weather", WEATHER)]),
    ),
    (
        "functiongemma",
        "ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices",
        (
            "<start_function_call>call:get_weather{location:<escape>Paris, France<escape>,unit:<escape>celsius<escape>}"
            "<end_function_call>"
        ),
        Answer(calls=[("get_weather", WEATHER)]),
    ),
    (
        "gemma4",
        "huggingface.co/google/gemma-4-31B-it, chat_template.jinja",
        (
            '<|channel>thought\nHm.\n<channel|><|tool_call>call:get_user_info{special:<|"|>a "b"<|"|>,'
            'user_id:[1,true,{x:<|"|>y<|"|>}]}<tool_call|>'
        ),
        Answer("", "Hm.", [("get_user_info", '{"special": "a \\"b\\"", "user_id": [1, true, {"x": "y"}]}')]),
    ),
    (
        "gpt_oss",
        "cookbook.openai.com/articles/openai-harmony, Receiving tool calls",
        (
            "<|channel|>analysis<|message|>Need to use function get_weather.<|end|><|start|>assistant<|channel|>"
            'commentary to=functions.get_weather <|constrain|>json<|message|>{"location":"San Francisco"}<|call|>'
        ),
        Answer("", "Need to use function get_weather.", [("get_weather", '{"location":"San Francisco"}')]),
    ),
    (
        "gpt_oss",
        "the same guide, Preambles",
        (
            "<|channel|>analysis<|message|>{long chain of thought}<|end|><|start|>assistant"
            "<|channel|>commentary<|message|>"
            "**Action plan**:\n1. Look\n---\nWill start now.<|end|><|start|>assistant<|channel|>commentary "
            'to=functions.get_weather<|constrain|>json<|message|>{"location":"SF"}<|call|>'
        ),
        Answer(
            "**Action plan**:\n1. Look\n---\nWill start now.",
            "{long chain of thought}",
            [("get_weather", '{"location":"SF"}')],
        ),
    ),
    (
        "gpt_oss",
        "its chat template: the recipient beside the role",
        f" to=functions.get_weather<|channel|>commentary json<|message|>{WEATHER}<|call|>",
        Answer(calls=[("get_weather", WEATHER)]),
    ),
    (
        "gpt_oss",
        "the same guide, Chat format",
        (
            '<|channel|>analysis<|message|>User asks: "What is 2 + 2?" Simple.<|end|>'
            "<|start|>assistant<|channel|>final<|message|>2 + 2 = 4.<|return|>"
        ),
        Answer("2 + 2 = 4.", 'User asks: "What is 2 + 2?" Simple.'),
    ),
]
