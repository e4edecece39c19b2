"""How models mark what they think before they answer. Pure: a table, and which row a template belongs to.

gpt-oss does it by channels (harmony.py).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Reasoning stands at the answer's beginning, between two markers. Some templates write the first into the
    prompt."""

    open: str
    close: str
    special: bool
    """Whether the markers may be special tokens whose text an engine hides."""

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.open, self.close)

    def opened_by(self, prompt_end: str) -> bool:
        return prompt_end.rstrip().endswith(self.open.rstrip())


REASONING = (
    # Mistral: the card of Magistral-Small-2507 and later; two special tokens.
    ReasoningFormat("[THINK]", "[/THINK]", special=True),
    # Gemma 4: the template of google/gemma-4-31B-it.
    ReasoningFormat("<|channel>thought\n", "<channel|>", special=True),
    # DeepSeek-R1, Qwen3, QwQ and most others: the card of deepseek-ai/DeepSeek-R1, Qwen/Qwen3-8B.
    ReasoningFormat("<think>", "</think>", special=False),
)


def reasoning_of(template: str) -> ReasoningFormat | None:
    """The format that the template writes its reasoning in; None where it knows of none."""
    for row in REASONING:
        if row.close in template:
            return row
    return None
