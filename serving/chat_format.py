"""A model's own chat template, rendered the way transformers renders it.

Nothing here knows tokens or engines, and no template that a client sent ever comes here. The template is code from
a model file: it runs in Jinja's immutable sandbox.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from serving.engine import PromptError


class TemplateBroken(Exception):
    """The template itself cannot be compiled. The message says where."""


class ChatFormat:
    """One model's template, compiled once. Rendering keeps no state and may be done from any thread."""

    def __init__(self, template: str, bos: str, eos: str, now: Callable[[], datetime]) -> None:
        """`bos` and `eos`: the special tokens as text, "" for a model without. `now`: the local time, for templates
        that tell the model the date. Raises TemplateBroken."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        try:
            self._template = environment.from_string(template)
        except TemplateError as error:
            raise TemplateBroken(f"the model's chat template does not compile: {error}") from error
        self._bos = bos
        self._eos = eos

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The conversation as one text that ends where the model's answer begins. Raises PromptError with the
        template's own words, when it refuses the conversation or fails on it."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                bos_token=self._bos,
                eos_token=self._eos,
            )
        except _Refused as refusal:
            raise PromptError(f"this model's chat template refuses the messages: {refusal}") from refusal
        except SecurityError as error:
            raise PromptError(f"this model's chat template does what its sandbox forbids: {error}") from error
        except (TemplateError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
            raise PromptError(f"this model's chat template fails on the messages: {error}") from error


class _Refused(TemplateError):
    """Raised by the template itself."""


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks the model's words for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance's set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
