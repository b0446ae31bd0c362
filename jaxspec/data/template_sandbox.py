"""A sandbox for chat templates: their work is counted, and too much of it is refused.

A template is a program from others. Jinja's sandbox keeps it away from Python, but lets it loop for
days or fill the memory with one expression. Here, each pass of a loop, each call and each new value
costs work: about one unit for a character or a step of the program. The count does not depend on
the machine or its load.

Before a template is compiled, `_Counting` puts the filters in `_COUNTERS` into its syntax tree.
"""

from __future__ import annotations

import functools
import re
import string
import threading
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

MOST_WORK = 1 << 28
"""Units of work for one text: a few seconds and at most 1 GiB."""
MOST_CHARACTERS = 10_000_000
"""Characters of one text, and of one value that a template makes."""
MOST_SOURCE = 200_000
"""Characters of a template. The longest in use have a tenth as many."""
_ITEM_WORK = 64
"""Work of a value in a list and of each part of a loop's body; a call costs four times as much."""
_CALL_WORK = 4 * _ITEM_WORK
_MOST_BITS = 1 << 14
"""Bits of an integer."""
_MOST_PARTS = 32
"""Parts of a sum that is not counted."""

_GROWING = frozenset(
    {"center", "expandtabs", "join", "ljust", "replace", "rjust", "to_bytes", "translate", "zfill"}
)
"""Methods whose result may be as long as the value times the largest argument."""
_FORMATTING = frozenset({"format", "format_map"})
_CONSTANT = frozenset({"count", "d", "default", "first", "last", "length"})
"""Filters that do the same work for any value."""

_NUMBERS = (int, float)
_TEXTS = (str, bytes)
_METHODS = (types.BuiltinMethodType, types.MethodType)


class TooMuchWork(jinja2.TemplateRuntimeError):
    """A template does more work than any chat needs."""


class _Account(threading.local):
    left = 0


_account = _Account()


def _spend(amount: int) -> None:
    """Counts work on the text that this thread is rendering.

    Raises:
      TooMuchWork: no work is left.
    """
    _account.left -= amount
    if _account.left < 0:
        raise TooMuchWork(f"it takes more than {MOST_WORK:,} steps: it loops or grows too much")


def _make(characters: int) -> None:
    """Counts a new value."""
    if characters > MOST_CHARACTERS:
        raise TooMuchWork(f"it makes a value of more than {MOST_CHARACTERS:,} characters")
    _spend(characters)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which also counts the work of a template."""

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        filters: Mapping[str, Callable[..., Any]],
        **options: Any,
    ) -> None:
        """Make a sandbox with options of jinja2.Environment and more functions and filters."""
        super().__init__(**options)
        del self.globals["lipsum"]
        self.globals |= {"namespace": _Namespace, **functions}
        self.filters |= filters
        for name in self.filters.keys() - _CONSTANT:
            self.filters[name] = _counted_filter(self.filters[name])
        self.filters |= {"format": _formatted, **_COUNTERS}

    def compiled(self, source: str) -> jinja2.Template:
        """A template that counts its work.

        Raises:
          jinja2.TemplateError: the source has a mistake, or is too long.
        """
        if len(source) > MOST_SOURCE:
            raise TooMuchWork(f"it has {len(source):,} characters, more than {MOST_SOURCE:,}")
        _account.left = MOST_WORK
        return self.from_string(_Counting().visit(self.parse(source)))

    def rendered(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """The text of a template that was `compiled` here."""
        _account.left = MOST_WORK
        return template.render(variables)

    def concat(self, pieces: Iterable[str]) -> str:
        """The text of pieces that a template or a part of it prints."""
        printed = []
        left = MOST_CHARACTERS
        for piece in pieces:
            left -= len(piece)
            if left < 0:
                raise TooMuchWork(f"it prints more than {MOST_CHARACTERS:,} characters")
            printed.append(piece)
        return "".join(printed)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As jinja's, but finds the entries of a message without raising an exception for each."""
        if type(obj) is dict and attribute in obj and not hasattr(dict, attribute):
            return obj[attribute]
        return super().getattr(obj, attribute)

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """As jinja's, but `map` can name only the template's own filters, not the counters."""
        if name in _COUNTERS:
            raise jinja2.TemplateRuntimeError(f"No filter named {name!r}.")
        return super().call_filter(name, *args, **kwargs)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The result of a call in a template."""
        is_method = isinstance(function, _METHODS)
        if is_method and type(function.__self__) is str and function.__name__ not in _GROWING:
            # The most frequent kind: jinja's checks find nothing in it.
            _spend(_CALL_WORK + len(function.__self__))
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return function(*args, **kwargs)
        _spend(_CALL_WORK)
        if is_method or hasattr(function, "__wrapped__"):
            args = tuple([_kept(argument) for argument in args])
            _spend(_method_work(function, (*args, *kwargs.values())))
        result = super().call(context, function, *args, **kwargs)
        if isinstance(result, str):
            _make(len(result))
        elif isinstance(result, dict):
            _make(_weight(result))
        return result


class _Namespace(jinja2.utils.Namespace):
    """A namespace whose text does not grow with its content."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _weight(value: Any) -> int:
    """Roughly the number of characters of a value's text."""
    if isinstance(value, str):
        return len(value)
    if value is None or isinstance(value, _NUMBERS):
        return _ITEM_WORK
    total = 0
    todo = [value]
    while todo and total <= MOST_WORK:
        item = todo.pop()
        total += _ITEM_WORK
        if isinstance(item, _TEXTS):
            total += len(item)
        elif item is None or isinstance(item, _NUMBERS):
            continue
        elif isinstance(item, Mapping):
            todo += item.keys()
            todo += item.values()
        elif isinstance(item, Collection):
            todo += item
    return total


def _factor(argument: Any) -> int:
    """By which factor an argument can lengthen a value."""
    if isinstance(argument, int):
        return max(1, abs(argument))
    return max(1, _weight(argument))


def _kept(value: Any) -> Any:
    """An iterator's values, so that they can be counted; anything else is returned unchanged."""
    if isinstance(value, str | jinja2.runtime.LoopContext) or not isinstance(value, Iterator):
        return value
    return list(value)


def _method_work(method: Any, arguments: tuple[Any, ...]) -> int:
    owner = getattr(method, "__wrapped__", method).__self__
    if isinstance(owner, Mapping):
        return _CALL_WORK
    work = _weight(owner)
    name = method.__name__
    if name in _GROWING:
        return work * max(map(_factor, arguments), default=_CALL_WORK)
    if name in _FORMATTING and isinstance(owner, str):
        specs = [spec or "" for _, _, spec, _ in string.Formatter().parse(owner)]
        return _format_work(owner, specs, arguments, takes_width="{")
    for argument in arguments:
        work += _weight(argument)
    return work


def _format_work(
    pattern: str, specs: list[str], arguments: Collection[Any], *, takes_width: str
) -> int:
    """Work of formatting; `takes_width` in a specification takes its width from an argument."""
    widths = [int(width[:18]) for spec in specs for width in re.findall(r"\d+", spec)]
    if any(takes_width in spec for spec in specs):
        widths += map(_factor, arguments)
    return len(pattern) * (_weight(arguments) + 1) + sum(widths) * len(specs)


def _counted_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    passed = getattr(function, "jinja_pass_arg", None)

    @jinja2.pass_context
    @functools.wraps(function)
    def counted(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        value = _kept(value)
        _spend(_weight(value) * max(map(_factor, (*args, *kwargs.values())), default=1))
        if passed is None:
            result = function(value, *args, **kwargs)
        else:
            first = {
                "context": context,
                "eval_context": context.eval_ctx,
                "environment": context.environment,
            }[passed.name]
            result = function(first, value, *args, **kwargs)
        if isinstance(result, str):
            _make(len(result))
        return result

    return counted


@jinja2.pass_context  # Otherwise it would be called once, when the template is compiled.
def _pass(_: Any, amount: int) -> None:
    """One pass of a loop, or one call of a macro."""
    _spend(amount)


@jinja2.pass_context
def _passes(_: Any, values: Any, amount: int) -> Any:
    """The values that a loop runs over, counted."""
    try:
        _spend(len(values) * amount)
    except TypeError:
        return _each(values, amount)
    return values


def _each(values: Iterable[Any], amount: int) -> Iterator[Any]:
    for value in values:
        _spend(amount)
        yield value


def _compared(value: Any) -> Any:
    if type(value) is not int:
        _spend(_weight(value))
    return value


def _sliced(value: Any) -> Any:
    _spend(len(value) if isinstance(value, Collection) else _CALL_WORK)
    return value


def _held(value: Any) -> Any:
    """A list, tuple or dictionary that is written out in a template."""
    _make(_weight(value))
    return value


def _printed(value: Any) -> Any:
    if not isinstance(value, str):
        _make(_weight(value))
    return value


def _joined(values: list[Any]) -> str:
    _make(_weight(values))
    return "".join(map(str, values))


def _added(left: Any, right: Any) -> Any:
    _make(_weight(left) + _weight(right))
    return left + right


def _multiplied(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    elif isinstance(left, Collection):
        _make(_weight(left) * _factor(right))
    elif isinstance(right, Collection):
        _make(_weight(right) * _factor(left))
    return left * right


def _powered(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * right)
    return left**right


def _check_bits(bits: int) -> None:
    if bits > _MOST_BITS:
        raise TooMuchWork(f"it makes an integer of more than {_MOST_BITS} bits")


def _remainder(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        arguments = right if isinstance(right, tuple) else (right,)
        specs = re.findall(r"%(?:\([^)]*\))?([^a-zA-Z%]*)", left)
        _spend(_format_work(left, specs, arguments, takes_width="*"))
    return left % right


def _formatted(pattern: Any, *args: Any, **kwargs: Any) -> Any:
    """Jinja's filter."""
    if args and kwargs:
        raise jinja2.exceptions.FilterArgumentError("format takes values or names, but not both")
    return _remainder(str(pattern), kwargs or args)


_COUNTERS: dict[str, Callable[..., Any]] = {
    f"counting {function.__name__}": function
    for function in (
        *(_pass, _passes, _compared, _sliced, _held, _printed),
        *(_joined, _added, _multiplied, _powered, _remainder),
    )
}
"""Filters that templates cannot name, because the names have a space."""
_OPERATIONS = {
    jinja2.nodes.Mul: _multiplied,
    jinja2.nodes.Pow: _powered,
    jinja2.nodes.Mod: _remainder,
}


class _Counting(jinja2.visitor.NodeTransformer):
    """Puts the filters in `_COUNTERS` into a syntax tree."""

    def __init__(self) -> None:
        self._is_printed_at_once = True
        """Whether `Sandbox.concat` counts each piece before the next one is made."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        if node.recursive:
            return self._visit_part(node)
        amount = _size(node)
        self.generic_visit(node)
        values: Any = node.iter
        node.iter = _through(_passes, values, jinja2.nodes.Const(amount))
        return node

    def _visit_part(self, node: Any) -> jinja2.nodes.Node:
        """A part whose text is collected before it is printed."""
        amount = _size(node)
        before, self._is_printed_at_once = self._is_printed_at_once, False
        self.generic_visit(node)
        self._is_printed_at_once = before
        count = _through(_pass, jinja2.nodes.Const(amount, environment=node.environment))
        node.body.insert(0, jinja2.nodes.ExprStmt(count))
        return node

    visit_Macro = visit_Block = visit_CallBlock = visit_FilterBlock = visit_AssignBlock = (
        _visit_part
    )

    def visit_Output(self, node: jinja2.nodes.Output) -> jinja2.nodes.Node:
        if self._is_printed_at_once:
            node.nodes = [self._visit_sum(child, parts=_MOST_PARTS) for child in node.nodes]
        else:
            self.generic_visit(node)
            node.nodes = [_unless_constant(_printed, child) for child in node.nodes]
        return node

    def _visit_sum(self, node: jinja2.nodes.Expr, *, parts: int) -> Any:
        """A sum that is printed at once: `Sandbox.concat` counts it."""
        if not isinstance(node, jinja2.nodes.Add) or not parts:
            return self.visit(node)
        node.left = self._visit_sum(node.left, parts=parts - 1)
        node.right = self.visit(node.right)
        return node

    def visit_Add(self, node: jinja2.nodes.Add) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _through(_added, node.left, node.right)

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        values = jinja2.nodes.List(node.nodes, environment=node.environment)
        return _through(_joined, values)

    def visit_Compare(self, node: jinja2.nodes.Compare) -> jinja2.nodes.Node:
        self.generic_visit(node)
        for operand in node.ops:
            operand.expr = _unless_constant(_compared, operand.expr)
        return node

    def visit_Test(self, node: jinja2.nodes.Test) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.args = [_unless_constant(_compared, argument) for argument in node.args]
        return node

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _through(_sliced, node) if isinstance(node.arg, jinja2.nodes.Slice) else node

    def _visit_operation(self, node: Any) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _through(_OPERATIONS[type(node)], node.left, node.right)

    visit_Mul = visit_Pow = visit_Mod = _visit_operation

    def _visit_literal(self, node: Any) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _unless_constant(_held, node)

    visit_List = visit_Tuple = visit_Dict = _visit_literal


def _size(node: jinja2.nodes.Node) -> int:
    """Work of one pass: that of all parts of the loop or macro."""
    return _ITEM_WORK * sum(1 for _ in node.find_all(jinja2.nodes.Node))


def _through(
    function: Callable[..., Any], node: jinja2.nodes.Expr, *arguments: jinja2.nodes.Expr
) -> jinja2.nodes.Filter:
    name = f"counting {function.__name__}"
    return jinja2.nodes.Filter(
        node, name, [*arguments], [], None, None, environment=node.environment
    )


def _unless_constant(function: Callable[..., Any], node: jinja2.nodes.Expr) -> jinja2.nodes.Expr:
    try:
        node.as_const()
    except jinja2.nodes.Impossible:
        return _through(function, node)
    return node
