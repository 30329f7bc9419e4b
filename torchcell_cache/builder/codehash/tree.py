"""What a syntax tree means: its normal form, the names it reads, changes, assigns and imports.

Pure functions of :mod:`ast` trees. Nothing here depends on the Python version that parsed the text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import Any

Chain = tuple[str, ...]

_SKIPPED_FIELDS = frozenset({"ctx", "kind", "type_comment", "annotation", "returns", "simple"})
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_MUTATORS = frozenset(
    {"add", "append", "appendleft", "clear", "discard", "extend", "insert", "move_to_end", "pop", "popitem"}
    | {"remove", "setdefault", "update"}
)


def says(node: ast.AST | None, value: object) -> bool:
    """Whether the expression is a literal of exactly this value, so that the tree already identifies it."""
    try:
        return isinstance(node, ast.expr) and _same_literal(ast.literal_eval(node), value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False


def _same_literal(one: object, other: object) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, (set, frozenset)) and isinstance(other, (set, frozenset)):  # whose repr has no order
        return sorted(map(repr, one)) == sorted(map(repr, other))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same_literal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return _same_literal(list(one.items()), list(other.items()))
    return repr(one) == repr(other)


def names_in(node: ast.AST | None) -> set[str]:
    """First components of all names read in a tree."""
    return set() if node is None else {chain[0] for chain in chains(node)}


def _children(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """Fields that carry meaning, in which lists of statements lose those that do nothing."""
    for name, value in ast.iter_fields(node):
        if name not in _SKIPPED_FIELDS and value is not None and value != []:
            yield name, [item for item in value if not _idle(item)] if isinstance(value, list) else value


def _idle(node: object) -> bool:
    """Docstrings, other bare constants, ``pass`` and annotations without a value."""
    return (
        isinstance(node, ast.Pass)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.AnnAssign) and node.value is None)
    )


def normal_form(node: object) -> object:
    """The tree as JSON, equal for trees of equal meaning."""
    if isinstance(node, ast.Constant):
        value = node.value
        return [type(value).__name__, hex(value) if type(value) is int else ascii(value)]
    if isinstance(node, ast.AnnAssign):
        return ["Assign", ["targets", [normal_form(node.target)]], ["value", normal_form(node.value)]]
    if isinstance(node, ast.ClassDef):
        # The order of methods has no meaning; a property and its setter share a name and keep theirs.
        methods = sorted(
            (item for item in node.body if isinstance(item, _FUNCTIONS)), key=lambda item: item.name
        )
        node = ast.ClassDef(**dict(ast.iter_fields(node)))
        node.body = [*(item for item in node.body if not isinstance(item, _FUNCTIONS)), *methods]
    if isinstance(node, ast.AST):
        return [
            type(node).__name__,
            *([name, normal_form(value)] for name, value in _children(node) if value != []),
        ]
    if isinstance(node, list):
        return [normal_form(item) for item in node]
    return node


def _dotted(node: ast.AST) -> Chain | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return (node.id, *reversed(parts)) if isinstance(node, ast.Name) else None


def chains(node: object) -> Iterator[Chain]:
    """Names and dotted names that are read."""
    if isinstance(node, list):
        for item in node:
            yield from chains(item)
    elif isinstance(node, ast.AST):
        chain = _dotted(node)
        if chain is not None:
            yield chain
        else:
            for _, value in _children(node):
                yield from chains(value)


def written(node: ast.AST) -> Iterator[Chain]:
    """Chains changed by ``global x``, ``x.y = 1``, ``x[0] = 1``, ``del x[0]``, ``x.append(1)`` and alike."""
    if isinstance(node, ast.Global | ast.Nonlocal):
        yield from ((name,) for name in node.names)
        return
    target: ast.AST | None = None
    if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
        target = node if isinstance(node, ast.Attribute) else node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _MUTATORS:
        target = node.func.value
    while isinstance(target, ast.Subscript):
        target = target.value
    chain = None if target is None else _dotted(target)
    if chain is not None:
        yield chain


def assignments(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """Name and expression of each assignment outside functions and classes, also in ``if`` and ``try``."""
    for node in outside_functions(body):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        yield part.id, node.value


def outside_functions(body: Iterable[ast.stmt]) -> list[ast.stmt]:
    """Simple statements that run when the body runs, in order."""
    found: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        inner = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]
        blocks = [child for child in inner if isinstance(child, ast.stmt)]
        for handler in inner:
            if isinstance(handler, ast.ExceptHandler | ast.match_case):
                blocks += handler.body
        found += outside_functions(blocks) if blocks else [node]
    return found
