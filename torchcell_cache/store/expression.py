"""A small language over stored columns, such as ``perturbed_count == 2 and fitness > 0.5``.

Python's parser reads it, every node of the tree is on a list of allowed ones, and numpy computes it column-wise: nothing is
ever executed. Numbers are floats: integer columns count as float64, float columns keep their precision, and a constant
takes that of the column it meets, so ``fitness == 0.9`` means what it says on a float32 column. NaN compares as in IEEE 754:
every comparison with it is false but ``!=``.

Columns of names (cell types, batches) are compared with texts: ``cell_type in ('NK', 'B cell')``.

The parser takes identifiers in Unicode's NFKC form, in which a micro sign is a Greek letter and a decomposed umlaut one
character. So names that are not plain ASCII, and those in backticks, stand aside while it works.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.checks import lookalike, suggestion
from torchcell_cache.errors import SettingError
from torchcell_cache.store.columns import is_number

MAX_LENGTH = 4_000
MAX_NODES = 1_000
MAX_DEPTH = 40
_LARGEST = 2**53
_FIX = (
    "and, or, not (&, |, ~), comparisons, in (..), + - * / // %, isnan(x), isfinite(x), abs(x), names of columns, "
    "in backticks where they have blanks or signs"
)
_PLACEHOLDER = "quoted_column_"
_PARTS = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`([^`]*)`|(?:\w|[^\x00-\x7f])+""")

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide,
    ast.FloorDiv: np.floor_divide, ast.Mod: np.remainder,
}  # fmt: skip
_JOIN: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.And: np.logical_and, ast.Or: np.logical_or, ast.BitAnd: np.logical_and, ast.BitOr: np.logical_or,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {"isnan": np.isnan, "isfinite": np.isfinite, "abs": np.abs}


def _is_truth(value: Any) -> bool:
    """Whether a column or constant is of bools rather than of numbers."""
    return isinstance(value, bool) or getattr(value, "dtype", None) == np.bool_


class Expression:
    """A parsed expression; a column whose name is not a Python name stands in backticks, as in pandas' ``query``."""

    def __init__(self, text: str) -> None:
        self.text = text
        if not isinstance(text, str) or not text.strip():
            raise SettingError(f"where={text!r:.200} is no expression", fix="where='perturbed_count == 2'")
        if len(text) > MAX_LENGTH:
            raise self.refused(f"has {len(text):,} characters, at most {MAX_LENGTH:,} expected")
        if _PLACEHOLDER in text:
            raise self.refused(f"{_PLACEHOLDER!r} is reserved")
        self._quoted: list[str] = []
        self._tree = self._parsed(_PARTS.sub(self._set_aside, text)).body
        level, nodes = [self._tree], 0
        for _ in range(MAX_DEPTH):
            nodes += len(level)
            level = [child for node in level for child in ast.iter_child_nodes(node)]  # type: ignore[misc]
        if level or nodes > MAX_NODES:
            raise self.refused(f"is larger than {MAX_NODES} parts or nested deeper than {MAX_DEPTH}")

    def _set_aside(self, match: re.Match[str]) -> str:
        """A placeholder for a name that the parser must not see."""
        word, quoted = match[0], match[1]
        if quoted is None and (word[0] in "'\"" or word.isascii() or not word.isidentifier()):
            return word
        self._quoted.append(word if quoted is None else quoted)
        return f" {_PLACEHOLDER}{len(self._quoted) - 1} "

    def _parsed(self, text: str) -> ast.Expression:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the parser, about text that is refused later
                return ast.parse(text.strip(), "<where>", mode="eval")
        except SyntaxError as error:
            raise self.refused(f"cannot be read: {error.msg}", fix=f"it has {_FIX}") from None
        except (ValueError, MemoryError, RecursionError) as error:
            raise self.refused(f"cannot be read: {type(error).__name__}") from None

    def refused(self, what: str, fix: str | None = None) -> SettingError:
        """The error that says what is wrong with it."""
        return SettingError(f"where={self.text[:200] + '...' * (len(self.text) > 200)!r} {what}", fix=fix)

    def shown(self, node: ast.AST) -> str:
        """A part of the expression for a message, its names in the place of placeholders."""
        part = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
        return re.sub(rf"{_PLACEHOLDER}(\d+)", lambda m: f"`{self._quoted[int(m[1])]}`", part)[:80]

    def name(self, node: ast.Name) -> str:
        """The column that stands there."""
        number = node.id.removeprefix(_PLACEHOLDER)
        return self._quoted[int(number)] if number != node.id else node.id

    @property
    def names(self) -> list[str]:
        """Columns that it reads, in order of their first use."""
        called = {id(n.func) for n in ast.walk(self._tree) if isinstance(n, ast.Call)}
        found = [n for n in ast.walk(self._tree) if isinstance(n, ast.Name) and id(n) not in called]
        return list(dict.fromkeys(self.name(node) for node in found))

    def mask(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        count: int,
        categories: Mapping[str, Sequence[str]] | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Which samples it holds for, ``[count] bool``; ``categories`` has the names whose codes a column holds."""
        with np.errstate(all="ignore"):
            value = _Evaluation(self, columns, categories or {}).value(self._tree)
        constants = {str(node.value) for node in ast.walk(self._tree) if isinstance(node, ast.Constant)}
        if np.ndim(value) == 0 and (called := constants & columns.keys()):
            name = min(called)
            fix = f"`{name}` for the column {name!r}"
            raise self.refused(f"reads no column: {name} is a number", fix)
        if not _is_truth(value):
            raise self.refused("is a number, not a condition", fix="compare it: ... > 0")
        return np.broadcast_to(np.asarray(value, dtype=np.bool_), (count,)).copy()


class _Evaluation:
    """An expression on columns: a value is an array or, of constants alone, a Python ``float`` or ``bool``."""

    def __init__(
        self,
        expression: Expression,
        columns: Mapping[str, npt.NDArray[Any]],
        categories: Mapping[str, Sequence[str]],
    ) -> None:
        self.columns, self.categories = columns, categories
        self.name, self.shown, self.refused = expression.name, expression.shown, expression.refused

    def value(self, node: ast.expr) -> Any:
        """What a node of the tree comes to."""
        match node:
            case ast.Name() | ast.Subscript():
                return self._column(self._called(node))
            case ast.Constant(value=bool() as truth):
                return truth
            case ast.Constant(value=int() | float() as constant):
                if abs(constant) > _LARGEST and isinstance(constant, int):
                    raise self.refused(
                        "holds a whole number above 2**53, which no column is compared with exactly"
                    )
                if not math.isfinite(constant):
                    raise self.refused(
                        "holds a number that is not finite", "isfinite(x) asks for finite values"
                    )
                return float(constant)
            case ast.Constant(value=str() as text):
                raise self.refused(
                    f"holds the text {text!r:.60}; columns are numbers",
                    fix="names of nodes go to genes= and without=; columns of names are compared by ==, != and in",
                )
            case ast.BoolOp(op=op, values=parts):
                return functools.reduce(_JOIN[type(op)], [self._truth(part) for part in parts])
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() as sign, right=right):
                return _JOIN[type(sign)](self._joined(left, sign), self._joined(right, sign))
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=inner):
                return np.logical_not(self._truth(inner))
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=inner):
                return -self._number(inner) if isinstance(sign, ast.USub) else self._number(inner)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                pair = self._number(left), self._number(right)
                result = _ARITHMETIC[type(op)](*pair)
                return float(result) if all(isinstance(x, float) for x in pair) else result
            case ast.Compare():
                return self._comparison(node)
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
                result = _FUNCTIONS[name](self._number(argument))
                return result if np.ndim(result) or _is_truth(result) else float(result)
        raise self.refused(f"holds {self.shown(node)!r}, which is not of the language", fix=f"it has {_FIX}")

    def _called(self, node: ast.expr) -> str:
        """The column that a name, or a part such as ``y[7]``, stands for."""
        match node:
            case ast.Name():
                return self.name(node)
            case ast.Subscript(value=inner, slice=ast.Constant(value=int() as at)) if type(at) is int:
                return f"{self._called(inner)}[{at}]"
        raise self.refused(f"holds {self.shown(node)!r}, which is no part of a column", fix="y[7]")

    def _column(self, name: str) -> Any:
        usable = [key for key, column in self.columns.items() if is_number(column)]
        name = lookalike(name, usable)
        if name not in usable:
            why = "is not one number per sample" if name in self.columns else "is no column of this store"
            raise self.refused(f"names {name!r}, which {why}{suggestion(name, usable)}")
        column = self.columns[name]
        if column.dtype.kind == "b":
            return column
        if column.dtype.kind in "iu":
            if column.size and max(int(column.max()), -int(column.min())) > _LARGEST:
                raise self.refused(f"reads {name!r}, which holds numbers above 2**53")
            return column.astype(np.float64)
        return column.astype(np.promote_types(column.dtype, np.float32), copy=False)

    def _comparison(self, node: ast.Compare) -> Any:
        result: Any = True
        first, *others = self._coded([node.left, *node.comparators], node.ops)
        left = self.value(first)
        for op, right_node in zip(node.ops, others, strict=True):
            if isinstance(op, ast.In | ast.NotIn):
                if len(node.ops) > 1:
                    raise self.refused("chains 'in' with another comparison", fix="join the two by 'and'")
                if _is_truth(left) or not isinstance(right_node, ast.Tuple | ast.List):
                    raise self.refused("has 'in' without a number before or a list after it", "x in (1, 2)")
                choices = [self._number(item) for item in right_node.elts]
                if not all(isinstance(item, float) for item in choices):
                    raise self.refused("has a column in the list after 'in'", "x == a or x == b")
                values = np.asarray(left)
                return np.isin(values, np.asarray(choices, values.dtype), invert=isinstance(op, ast.NotIn))
            if type(op) not in _COMPARE:
                raise self.refused("compares by identity", fix=f"it has {_FIX}")
            right, truth = self.value(right_node), _is_truth(left)
            if truth != _is_truth(right) or (truth and not isinstance(op, ast.Eq | ast.NotEq)):
                raise self.refused(f"compares a condition with a number in {self.shown(node)!r}")
            result = np.logical_and(result, _COMPARE[type(op)](left, right))
            left = right
        return result

    def _coded(self, sides: list[ast.expr], ops: list[ast.cmpop]) -> list[ast.expr]:
        """The sides of a comparison, codes for texts: ``cell_type == 'NK'`` asks for the number that the column holds."""
        found = {lookalike(self.name(side), self.categories) for side in sides if isinstance(side, ast.Name)}
        column = next(iter(found & self.categories.keys()), None)
        if column is None or len(found) != 1:
            return sides
        equal = all(isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in ops)
        return [self._code(side, column, equal) for side in sides]

    def _code(self, side: ast.expr, column: str, equal: bool) -> ast.expr:
        if isinstance(side, ast.Tuple | ast.List):
            return ast.List([self._code(each, column, equal) for each in side.elts])
        if not isinstance(side, ast.Constant) or isinstance(side.value, bool):
            return side
        names, text = list(self.categories[column]), side.value
        if not isinstance(text, str):
            if str(text) in names:  # code or name? nobody can tell
                fix = f"{column} == {str(text)!r} for the name"
                raise self.refused(f"compares {column!r}, whose names are texts, with a number", fix)
            return side
        if not equal:
            raise self.refused(f"orders the names of {column!r}", fix="==, != and in (...)")
        if text not in names:
            raise self.refused(f"asks for {text!r:.60}, which is no {column}{suggestion(text, names)}")
        return ast.Constant(names.index(text))

    def _number(self, node: ast.expr) -> Any:
        value = self.value(node)
        if _is_truth(value):
            raise self.refused(f"counts with the condition {self.shown(node)!r}")
        return value

    def _truth(self, node: ast.expr) -> Any:
        value = self.value(node)
        if not _is_truth(value):
            said = f"joins the number {self.shown(node)!r} by and, or, not"
            raise self.refused(said, fix="compare it: ... > 0")
        return value

    def _joined(self, node: ast.expr, sign: ast.operator) -> Any:
        """A condition beside ``&`` or ``|``, which bind tighter than comparisons."""
        value = None if isinstance(node, ast.Constant) else self.value(node)
        if _is_truth(value):
            return value
        text, word = ("&", "and") if isinstance(sign, ast.BitAnd) else ("|", "or")
        raise self.refused(
            f"joins {self.shown(node)!r}, no condition, by {text!r}, which binds tighter than a comparison",
            fix=f"a > 1 {word} b < 2, or (a > 1) {text} (b < 2)",
        )
