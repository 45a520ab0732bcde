"""Chat templates: programs that come with a checkpoint, run with no access and bounded work.

The language is the one that transformers gives to chat templates (its filters, functions and block
settings). jinja's sandbox keeps a template away from Python; what it does not bound is work, so
every loop pass, call, filter and operator here is counted in time and in characters.
"""

from __future__ import annotations

import contextvars
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

LONGEST_TEMPLATE = 2**20  # characters; published ones have a few thousand
SECONDS = 2.0  # processor time of one rendering
CHARACTERS = 100_000_000  # made by one rendering, copies included
LARGEST = 1_000_000  # any width, count or number of list entries
_LONG_WIDTH = re.compile(r"(\{[^{}]*|%[^a-zA-Z%]*)\d{7}")


class TemplateOverrun(Exception):
    """A template that takes more time or memory than any conversation needs."""


class TemplateRefusal(Exception):
    """What a template itself says against a conversation."""


class _Allowance:
    """What a rendering may still do."""

    def __init__(self) -> None:
        self.until = time.thread_time() + SECONDS
        self.characters = CHARACTERS

    def tick(self, made: Any = None) -> Any:
        """Count one piece of work and what it made; returns that."""
        if time.thread_time() > self.until:
            raise TemplateOverrun(f"it takes longer than {SECONDS:g} seconds")
        if isinstance(made, str):
            self.characters -= len(made)
        elif isinstance(made, list | tuple | dict) and len(made) > LARGEST:
            raise TemplateOverrun(f"it makes a list of more than {LARGEST} entries")
        if self.characters < 0:
            raise TemplateOverrun(f"it makes more than {CHARACTERS} characters")
        return made

    def check(self, *sizes: int) -> None:
        """Refuse a piece of work before it is done whose result has the product of some sizes."""
        size = 1
        for factor in sizes:
            size *= max(factor, 1)
        if size > CHARACTERS:
            raise TemplateOverrun(f"it makes more than {CHARACTERS} characters")


_budget: contextvars.ContextVar[_Allowance] = contextvars.ContextVar("work of a template")


def _check_arguments(name: str, values: Sequence[Any]) -> None:
    """Refuse widths and counts that no text has, before the work is done."""
    for value in values:
        if isinstance(value, int) and abs(value) > LARGEST:
            raise TemplateOverrun(f"{name} is asked for {value:.3g} of something")
        formats = isinstance(value, str) and name in ("format", "format_map", "%")
        if formats and _LONG_WIDTH.search(value):
            raise TemplateOverrun(f"{name} is asked for a width of millions")
    texts = [len(value) for value in values if isinstance(value, str | list | tuple)]
    if name in ("replace", "join") and len(texts) > 1:
        _budget.get().check(texts[0] + 1, max(texts[1:]))


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or function whose work is bounded."""

    @functools.wraps(function)  # keeps the marks by which jinja passes its context
    def run(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(name, (*args, *kwargs.values()))
        return _budget.get().tick(function(*args, **kwargs))

    return run


def _each(values: Iterable[Any]) -> Iterator[Any]:
    """The same values; every pass of a loop over them is counted."""
    budget = _budget.get()
    for value in values:
        budget.tick()
        yield value


class _Instrumented(NodeTransformer):
    """Puts a count into every loop, concatenation, slice and output of a template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_each", [], [], None, None)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            part if isinstance(part, nodes.TemplateData) else self._made(part)
            for part in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._made(node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._made(node) if isinstance(node.arg, nodes.Slice) else node

    @staticmethod
    def _made(node: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(node, "_made", [], [], None, None)


class _Reply(Extension):
    """`{% generation %}`: marks the assistant's words for training; here it only shows them."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of jinja with bounded work."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator that can make much of little."""
        budget = _budget.get()
        if operator == "*":
            for values, times in ((left, right), (right, left)):
                if isinstance(values, str | list | tuple) and isinstance(times, int):
                    budget.check(len(values), times)
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (abs(right) if operator == "**" else 1) + right.bit_length()
            budget.check(bits, 1000)
        if operator == "%" and isinstance(left, str):
            _check_arguments("%", [left, *(right if isinstance(right, tuple) else [right])])
        return budget.tick(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a function, macro or method."""
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str | list | tuple) or name.startswith("format"):
            _check_arguments(name, (owner, *args, *kwargs.values()))
        result = super().call(__context, __obj, *args, **kwargs)
        return _budget.get().tick(result)

    def wrap_str_format(self, value: Any) -> Any:
        """`str.format` without access to attributes, once its widths have been looked at."""
        if getattr(value, "__name__", "").startswith("format"):
            _check_arguments("format", [getattr(value, "__self__", None)])
        return super().wrap_str_format(value)


class _Dict:
    """`dict(...)` and `dict.fromkeys(...)`, without the attributes of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)`: takes no names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may say self=
        self, *rest = args
        jinja2.utils.Namespace.__init__(self)
        for name, value in dict(*rest, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace has no attribute {name!r}")
        super().__setitem__(name, value)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, without jinja's escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: Any) -> None:
    raise TemplateRefusal(str(message))


@functools.cache
def _environment() -> _Environment:
    env = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Reply, loopcontrols], optimized=False
    )
    env.filters["tojson"] = _tojson
    env.filters = {name: _counted(name, function) for name, function in env.filters.items()}
    env.filters |= {"_each": _each, "_made": lambda value: _budget.get().tick(value)}
    del env.globals["lipsum"]
    env.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return env


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    if len(source) > LONGEST_TEMPLATE:
        raise TemplateOverrun(f"it has {len(source)} characters, more than {LONGEST_TEMPLATE}")
    env = _environment()
    return env.from_string(_Instrumented().visit(env.parse(source)))


@functools.lru_cache(maxsize=8)
def variables(source: str) -> frozenset[str]:
    """The names that a template looks at; raises what `render` would where it does not parse."""
    _compiled(source)
    return frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(source)))


def render(source: str, values: Mapping[str, Any]) -> str:
    """The text that a template makes of plain JSON values.

    Args:
        source: The template.
        values: `messages`, `add_generation_prompt`, special tokens and what else it asks for.

    Raises:
        TemplateRefusal: The template refuses the conversation; the message is its own.
        TemplateOverrun: It takes more time or memory than any conversation needs.
        Exception: Anything else: it does not parse, or does not work with these values.
    """
    token = _budget.set(_Allowance())
    try:
        return "".join(_compiled(source).generate(**values))
    finally:
        _budget.reset(token)
