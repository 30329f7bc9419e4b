"""Texts in an expression: compared with columns that hold codes of names."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torchcell_cache.data.column_names import meant, suggestion

if TYPE_CHECKING:
    from torchcell_cache.data.expression import Expression


class CodedNames(ast.NodeTransformer):
    """Puts codes for names: ``cell_type == 'NK'`` becomes a comparison with the number that the column holds.

    Args:
        expression: Whose names they are; says what is refused.
        categories: The names by column.
    """

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
