"""Names in an expression: of columns, as they were typed, and texts, where columns hold codes of names.

The parser takes identifiers in Unicode's NFKC form, in which a micro sign is a Greek letter and a decomposed umlaut one
character. So names that are not plain ASCII, and those in backticks, stand aside while it works.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from torchcell_cache.core.checks import suggestion

if TYPE_CHECKING:
    from torchcell_cache.data.expression import Expression

PLACEHOLDER = "quoted_column_"
_PARTS = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`([^`]*)`|(?:\w|[^\x00-\x7f])+""")


def set_aside(text: str) -> tuple[str, list[str]]:
    """The expression with placeholders for names that the parser must not see, and those names, by number."""
    names: list[str] = []

    def aside(match: re.Match[str]) -> str:
        word, quoted = match[0], match[1]
        if quoted is None and (word[0] in "'\"" or word.isascii() or not word.isidentifier()):
            return word
        names.append(word if quoted is None else quoted)
        return f" {PLACEHOLDER}{len(names) - 1} "

    return _PARTS.sub(aside, text), names


def typed(text: str, names: list[str]) -> str:
    """An excerpt of the expression with its names in the place of placeholders."""
    return re.sub(rf"{PLACEHOLDER}(\d+)", lambda match: f"`{names[int(match[1])]}`", text)


def meant(name: str, known: Iterable[str]) -> str:
    """The known name that ``name`` is, or the only one that looks the same; ``name`` itself if there is none."""
    known = list(known)
    if name in known:
        return name
    form = unicodedata.normalize("NFKC", name)
    alike = [other for other in known if unicodedata.normalize("NFKC", other) == form]
    return alike[0] if len(alike) == 1 else name


def is_number(column: npt.NDArray[Any]) -> bool:
    """Whether a column has one number per sample."""
    return column.ndim == 1 and column.dtype.kind in "biuf"


class CodedNames(ast.NodeTransformer):
    """Puts codes for names: ``cell_type == 'NK'`` becomes a comparison with the number that the column holds."""

    def __init__(self, expression: Expression, categories: Mapping[str, Sequence[str]]) -> None:
        self.expression, self.categories = expression, categories

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """A comparison whose sides are one column of names and texts, by code."""
        self.generic_visit(node)
        sides = [node.left, *node.comparators]
        typed_names = {self.expression._name(side) for side in sides if isinstance(side, ast.Name)}
        found = {meant(name, self.categories) for name in typed_names}
        column = next(iter(found & self.categories.keys()), None)
        if column is not None and len(found) == 1:
            equal = all(isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in node.ops)
            node.left, *node.comparators = [self._side(side, column, equal) for side in sides]
        return node

    def _side(self, side: ast.expr, column: str, equal: bool) -> ast.expr:
        if isinstance(side, ast.Tuple | ast.List):
            side.elts = [self._side(each, column, equal) for each in side.elts]
        if not isinstance(side, ast.Constant) or isinstance(side.value, bool):
            return side
        names = list(self.categories[column])
        if not isinstance(side.value, str):
            if str(side.value) in names:  # code or name? nobody can tell
                fix = f"{column} == {str(side.value)!r} for the name"
                raise self.expression._refused(
                    f"compares {column!r}, whose names are texts, with a number", fix
                )
            return side
        if not equal:
            raise self.expression._refused(f"orders the names of {column!r}", fix="==, != and in (...)")
        if side.value not in names:
            raise self.expression._refused(
                f"asks for {side.value!r:.60}, which is no {column}{suggestion(side.value, names)}"
            )
        return ast.Constant(names.index(side.value))
