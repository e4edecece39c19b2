"""A chat template in Jinja's immutable sandbox, with what transformers gives templates.

The template is code from a model file; none that a client sent ever comes here. Rendering keeps no state and may be
done from any thread.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from serving.engine import PromptError


class TemplateBroken(Exception):
    """The template itself cannot be compiled. The message says where."""


class ChatTemplate:
    """One template, compiled once."""

    def __init__(self, template: str, now: Callable[[], datetime]) -> None:
        """`now`: the local time, for templates that tell the model the date. Raises TemplateBroken."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        environment.globals["namespace"] = _Namespace
        environment.globals["dict"] = _dict
        try:
            self._template = environment.from_string(template)
        except TemplateError as error:
            raise TemplateBroken(f"the model's chat template does not compile: {error}") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """Raises PromptError with the template's own words, when it refuses what it is given or fails on it."""
        try:
            return self._template.render(**variables)
        except _Refused as refusal:
            raise PromptError(f"this model's chat template refuses the messages: {refusal}") from refusal
        except SecurityError as error:
            raise PromptError(f"this model's chat template does what its sandbox forbids: {error}") from error
        except (
            TemplateError,
            ValueError,
            TypeError,
            LookupError,
            ArithmeticError,
            AttributeError,
            RecursionError,
        ) as error:
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


class _Namespace(Namespace):
    """Takes no names that are Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # in this way, because a template may name an attribute "self"
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace with the attribute {name!r}")


def _dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Not the type, which has more on it than templates need."""
    return dict(*args, **kwargs)


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks the model's words for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance's set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
