"""A small language over stored columns, such as ``perturbed_count == 2 and fitness > 0.5``.

Python's parser reads it, every node of the tree is on a list of allowed ones, and numpy computes it column-wise: nothing is
ever executed. Numbers are floats: integer columns count as float64, float columns keep their precision, and a constant
takes that of the column it meets, so ``fitness == 0.9`` means what it says on a float32 column. NaN compares as in IEEE 754:
every comparison with it is false but ``!=``.

Columns of names (cell types, batches) are compared with texts: ``cell_type in ('NK', 'B cell')``.
"""

from __future__ import annotations

import ast
import copy
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.checks import suggestion
from torchcell_cache.data.expression_names import PLACEHOLDER, CodedNames, is_number, meant, set_aside, typed
from torchcell_cache.errors import SettingError

MAX_LENGTH = 4_000
MAX_NODES = 1_000
MAX_DEPTH = 40
_LARGEST = 2**53
_FIX = (
    "and, or, not (&, |, ~), comparisons, in (..), + - * / // %, isnan(x), isfinite(x), abs(x), names of columns, "
    "in backticks where they have blanks or signs"
)

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide,
    ast.FloorDiv: np.floor_divide, ast.Mod: np.remainder,
}  # fmt: skip
_FUNCTIONS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "isnan": (np.isnan, True), "isfinite": (np.isfinite, True), "abs": (np.abs, False),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Value:
    """A column or a constant; ``truth`` says whether it is of bools rather than of numbers."""

    data: Any
    truth: bool


class Expression:
    """A parsed expression.

    Args:
        text: The expression. A column whose name is not a Python name stands in backticks, as in pandas' ``query``.

    Raises:
        SettingError: If it is not of the language; names the part.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if not isinstance(text, str) or not text.strip():
            raise SettingError(f"where={text!r} is no expression", fix="where='perturbed_count == 2'")
        if len(text) > MAX_LENGTH:
            raise self._refused(f"has {len(text):,} characters, at most {MAX_LENGTH:,} expected")
        if PLACEHOLDER in text:
            raise self._refused(f"{PLACEHOLDER!r} is reserved")
        readable, self._quoted = set_aside(text)
        self._tree = self._parsed(readable).body
        self._check_size()

    def _parsed(self, text: str) -> ast.Expression:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the parser, about text that is refused later
                return ast.parse(text.strip(), "<where>", mode="eval")
        except SyntaxError as error:
            raise self._refused(f"cannot be read: {error.msg}", fix=f"it has {_FIX}") from None
        except (ValueError, MemoryError, RecursionError) as error:
            raise self._refused(f"cannot be read: {type(error).__name__}") from None

    def _check_size(self) -> None:
        level, nodes, depth = [self._tree], 0, 0
        while level:
            nodes, depth = nodes + len(level), depth + 1
            if nodes > MAX_NODES or depth > MAX_DEPTH:
                raise self._refused(f"is larger than {MAX_NODES} parts or nested deeper than {MAX_DEPTH}")
            level = [child for node in level for child in ast.iter_child_nodes(node)]  # type: ignore[misc]

    def _refused(self, what: str, fix: str | None = None) -> SettingError:
        text = self.text if len(self.text) <= 200 else f"{self.text[:200]}..."
        return SettingError(f"where={text!r} {what}", fix=fix)

    def _unknown(self, node: ast.AST) -> SettingError:
        return self._refused(
            f"holds {self._shown(node)!r}, which is not of the language", fix=f"it has {_FIX}"
        )

    def _shown(self, node: ast.AST) -> str:
        """A part of the expression for a message."""
        part = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
        return typed(part, self._quoted)[:80]

    def _name(self, node: ast.Name) -> str:
        number = node.id.removeprefix(PLACEHOLDER)
        return self._quoted[int(number)] if number != node.id else node.id

    @property
    def names(self) -> list[str]:
        """Columns that it reads, in order of their first use."""
        called = {id(n.func) for n in ast.walk(self._tree) if isinstance(n, ast.Call)}
        found = [n for n in ast.walk(self._tree) if isinstance(n, ast.Name) and id(n) not in called]
        return list(dict.fromkeys(self._name(node) for node in found))

    def mask(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        count: int,
        categories: Mapping[str, Sequence[str]] | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Which samples it holds for, ``[count] bool``.

        Args:
            columns: Columns by name, ``[count]`` each.
            count: Number of samples.
            categories: For columns that hold codes of names, the names: such a column is compared with texts.

        Raises:
            SettingError: If a column is unknown or no column of numbers, or numbers stand where a comparison belongs.
        """
        tree = CodedNames(self, categories or {}).visit(copy.deepcopy(self._tree))
        with np.errstate(all="ignore"):
            value = self._value(tree, _Columns(self, columns))
        constants = {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        if np.ndim(value.data) == 0 and (called := constants & columns.keys()):
            name = min(called)
            raise self._refused(
                f"reads no column: {name} is a number", fix=f"`{name}` for the column {name!r}"
            )
        if not value.truth:
            raise self._refused("is a number, not a condition", fix="compare it: ... > 0")
        return np.broadcast_to(np.asarray(value.data, dtype=np.bool_), (count,)).copy()

    def _value(self, node: ast.expr, columns: _Columns) -> _Value:
        match node:
            case ast.Name():
                return columns.get(self._name(node))
            case ast.Constant(value=bool() | int() | float() as constant):
                return self._constant(constant)
            case ast.Constant(value=str() as text):
                raise self._refused(
                    f"holds the text {text!r:.60}; columns are numbers",
                    fix="names of nodes go to genes= and without=; columns of names are compared by ==, != and in",
                )
            case ast.BoolOp(op=op, values=parts):
                truths = [self._truth(part, columns) for part in parts]
                combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
                result = truths[0]
                for truth in truths[1:]:
                    result = combine(result, truth)
                return _Value(result, True)
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() as sign, right=right):
                pair = self._joined(left, sign, columns), self._joined(right, sign, columns)
                join = np.logical_and if isinstance(sign, ast.BitAnd) else np.logical_or
                return _Value(join(*pair), True)
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=inner):
                return _Value(np.logical_not(self._truth(inner, columns)), True)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=inner):
                number = self._number(inner, columns)
                return _Value(-number if isinstance(sign, ast.USub) else number, False)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                pair = self._number(left, columns), self._number(right, columns)
                result = _ARITHMETIC[type(op)](*pair)
                return _Value(float(result) if all(isinstance(x, float) for x in pair) else result, False)
            case ast.Compare():
                return self._comparison(node, columns)
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
                function, gives_truth = _FUNCTIONS[name]
                result = function(self._number(argument, columns))
                return _Value(result if gives_truth or np.ndim(result) else float(result), gives_truth)
        raise self._unknown(node)

    def _constant(self, constant: float) -> _Value:
        if isinstance(constant, bool):
            return _Value(constant, True)
        if abs(constant) > _LARGEST and isinstance(constant, int):
            raise self._refused("holds a whole number above 2**53, which no column is compared with exactly")
        if not math.isfinite(constant):
            raise self._refused("holds a number that is not finite", fix="isfinite(x) asks for finite values")
        return _Value(float(constant), False)

    def _comparison(self, node: ast.Compare, columns: _Columns) -> _Value:
        result: Any = True
        left = self._value(node.left, columns)
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.In | ast.NotIn):
                found = self._member(left, right_node, columns)
                result = np.logical_and(result, ~found if isinstance(op, ast.NotIn) else found)
                if len(node.ops) > 1:
                    raise self._refused("chains 'in' with another comparison", fix="join the two by 'and'")
                continue
            if type(op) not in _COMPARE:
                raise self._refused("compares by identity", fix=f"it has {_FIX}")
            right = self._value(right_node, columns)
            if left.truth != right.truth or (left.truth and not isinstance(op, ast.Eq | ast.NotEq)):
                raise self._refused(f"compares a condition with a number in {self._shown(node)!r}")
            result = np.logical_and(result, _COMPARE[type(op)](left.data, right.data))
            left = right
        return _Value(result, True)

    def _member(self, left: _Value, node: ast.expr, columns: _Columns) -> npt.NDArray[np.bool_]:
        if left.truth or not isinstance(node, ast.Tuple | ast.List):
            raise self._refused("has 'in' without a number before or a list after it", fix="x in (1, 2)")
        choices = [self._number(item, columns) for item in node.elts]
        if not all(isinstance(item, float) for item in choices):
            raise self._refused("has a column in the list after 'in'", fix="x == a or x == b")
        values = np.asarray(left.data)
        return np.isin(values, np.asarray(choices, dtype=values.dtype))

    def _number(self, node: ast.expr, columns: _Columns) -> Any:
        value = self._value(node, columns)
        if value.truth:
            raise self._refused(f"counts with the condition {self._shown(node)!r}")
        return value.data

    def _joined(self, node: ast.expr, sign: ast.operator, columns: _Columns) -> Any:
        """A condition beside ``&`` or ``|``, which bind tighter than comparisons."""
        value = None if isinstance(node, ast.Constant) else self._value(node, columns)
        if value is None or not value.truth:
            sign_text, word = ("&", "and") if isinstance(sign, ast.BitAnd) else ("|", "or")
            raise self._refused(
                f"joins {self._shown(node)!r}, no condition, by {sign_text!r}, which binds tighter than a comparison",
                fix=f"a > 1 {word} b < 2, or (a > 1) {sign_text} (b < 2)",
            )
        return value.data

    def _truth(self, node: ast.expr, columns: _Columns) -> Any:
        value = self._value(node, columns)
        if not value.truth:
            raise self._refused(
                f"joins the number {self._shown(node)!r} by and, or, not", fix="compare it: ... > 0"
            )
        return value.data


class _Columns:
    """Columns as numbers, converted when they are asked for."""

    def __init__(self, expression: Expression, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        self.expression, self.columns = expression, columns

    def get(self, name: str) -> _Value:
        usable = [key for key, column in self.columns.items() if is_number(column)]
        name = meant(name, usable)
        if name not in usable:
            known = name in self.columns
            why = "is not one number per sample" if known else "is no column of this store"
            raise self.expression._refused(f"names {name!r}, which {why}{suggestion(name, usable)}")
        column = self.columns[name]
        if column.dtype.kind == "b":
            return _Value(column, True)
        if column.dtype.kind in "iu":
            if column.size and max(int(column.max()), -int(column.min())) > _LARGEST:
                raise self.expression._refused(f"reads {name!r}, which holds numbers above 2**53")
            return _Value(column.astype(np.float64), False)
        return _Value(column.astype(np.promote_types(column.dtype, np.float32), copy=False), False)
