"""Source code of functions and classes as normalised syntax trees.

Normalised means: without comments, white space, positions, docstrings and annotations, and the same in every
Python version. A definition is found by comparing byte code with a fresh compilation of its file, not by line
number, so it is found after lines moved, and a file edited since its import is noticed.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import linecache
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import CodeType
from typing import Any

from torchcell_cache.builder.codehash.place import top_level
from torchcell_cache.builder.codehash.tree import (
    Chain,
    assignments,
    chains,
    normal_form,
    outside_functions,
    written,
)
from torchcell_cache.core.fingerprint import canonical_json

Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda

_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_GLOBAL_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_SHAPE = attrgetter(
    *("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount", "co_kwonlyargcount")
)


@dataclass(frozen=True, slots=True)
class Definition:
    """A piece of source: syntax trees that belong together and the names they use.

    Attributes:
        nodes: One tree; several for module-level assignments and for lambdas that cannot be told apart.
        global_names: Names that the code looks up in its module.
        codes: All code objects inside, compiled from the file as it is now.
    """

    nodes: Sequence[ast.AST]
    global_names: frozenset[str] = frozenset()
    codes: Sequence[CodeType] = ()

    @property
    def digest(self) -> str:
        """``source:`` and 32 hexadecimal digits of the normalised trees."""
        form = canonical_json([normal_form(node) for node in self.nodes])
        return f"source:{hashlib.sha256(form).hexdigest()[:32]}"

    def chains(self) -> list[Chain]:
        """Names and dotted names that are read, ``np.linalg`` as ``("np", "linalg")``; sorted."""
        return sorted({chain for node in self.nodes for chain in chains(node)})

    def _walk(self) -> Iterator[ast.AST]:
        return (inner for node in self.nodes for inner in ast.walk(node))

    def imports(self) -> dict[str, tuple[str, str | None]]:
        """Names bound by import statements: name to module and attribute (``None``: the module; ``""``: its top level)."""
        found: dict[str, tuple[str, str | None]] = {}
        for node in self._walk():
            if isinstance(node, ast.Import):
                for alias in node.names:
                    found[alias.asname or top_level(alias.name)] = alias.name, None if alias.asname else ""
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                found |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
        return found

    def writes(self) -> set[Chain]:
        """Dotted names that the code itself changes while it runs (memo tables, counters)."""
        return {chain for node in self._walk() for chain in written(node)}

    def holds(self, code: CodeType) -> bool:
        """Whether this code object is compiled from a part of this definition."""
        return any(inner.co_qualname == code.co_qualname and _same_code(inner, code) for inner in self.codes)


class SourceFile:
    """One parsed file: its tree and the code objects in it by qualified name."""

    def __init__(self, text: str, filename: str, interactive: bool = False) -> None:
        self.tree = ast.parse(text)
        # A notebook compiles a cell statement by statement, which gives other byte code where the cell imports a name.
        parts = [ast.Module([node], []) for node in self.tree.body] if interactive else []
        self.codes: dict[str, list[CodeType]] = defaultdict(list)
        for part in (self.tree, *parts):
            for code in _inner_codes(compile(part, filename, "exec", dont_inherit=True)):
                self.codes[code.co_qualname].append(code)
        self._scopes: dict[tuple[str, int], list[Scope]] = defaultdict(list)
        for node in ast.walk(self.tree):
            if isinstance(node, Scope):
                first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", ()))])
                self._scopes[getattr(node, "name", "<lambda>"), first].append(node)
        self._assigned: dict[str, list[ast.AST]] = defaultdict(list)
        for name, value in assignments(self.tree.body):
            self._assigned[name].append(value)
        self.imports = Definition(outside_functions(self.tree.body)).imports()

    @classmethod
    def read(
        cls, filename: str, module_globals: dict[str, Any] | None = None, by_statement: bool = True
    ) -> SourceFile | None:
        """The file, or the text that an interactive session registered under this name."""
        interactive = False
        try:
            with tokenize.open(filename) as file:
                text = file.read()
        except (OSError, SyntaxError, UnicodeDecodeError):
            text, interactive = "".join(linecache.getlines(filename, module_globals)), by_statement
        if not text or Path(filename).suffix in (".so", ".pyd"):
            return None
        try:
            return cls(text, filename, interactive)
        except (SyntaxError, ValueError):
            return None

    def function(self, code: CodeType, *, exact: bool) -> Definition | None:
        """The function or lambda that was compiled to ``code``.

        Where not ``exact``, name and line suffice: import hooks (pytest, type checkers) rewrite code.
        """
        named = [inner for inner in self.codes[code.co_qualname] if inner.co_name == code.co_name]
        found = [inner for inner in named if _same_code(inner, code)]
        if not found and not exact:
            found = [inner for inner in named if inner.co_firstlineno == code.co_firstlineno]
        if not found:
            return None
        return self._definition(min(found, key=lambda inner: abs(inner.co_firstlineno - code.co_firstlineno)))

    def class_(self, qualname: str, codes: Iterable[CodeType]) -> Definition | None:
        """The class of this qualified name; of several the one with most of these methods, then the last."""
        found, methods = map(self._definition, reversed(self.codes[qualname])), list(codes)
        classes = [made for made in found if made is not None and isinstance(made.nodes[0], ast.ClassDef)]
        return max(classes, key=lambda made: sum(map(made.holds, methods)), default=None)

    def assigned(self, name: str) -> Definition | None:
        """What the module assigns to a global name, all expressions together."""
        nodes = self._assigned.get(name)
        if not nodes:
            return None
        return Definition(nodes, frozenset(chain[0] for node in nodes for chain in chains(node)))

    def mentions_file(self, names: Iterable[str]) -> bool:
        """Whether global names are computed, directly or through others, from the module's own location."""
        seen: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            if name in ("__file__", "__path__"):
                return True
            if name not in seen:
                seen.add(name)
                definition = self.assigned(name)
                pending += definition.global_names if definition else ()
        return False

    def _definition(self, code: CodeType) -> Definition | None:
        nodes = self._scopes.get((code.co_name, code.co_firstlineno), [])
        if len(nodes) > 1:
            nodes = _around(nodes, code) or nodes
        if not nodes:
            return None
        names = global_names(code)
        for node in nodes:
            # Decorators, base classes and class keywords run in the scope around the definition.
            outer = [*getattr(node, "decorator_list", ())]
            outer += [*node.bases, *node.keywords] if isinstance(node, ast.ClassDef) else []
            names |= {chain[0] for chain in chains(outer)}
        return Definition(nodes, frozenset(names), [code, *_inner_codes(code)])


def default_nodes(definition: Definition, code: CodeType) -> dict[str, ast.AST]:
    """Default expressions of a function, which is the definition or a method in it, by parameter."""
    inside = (node for node in ast.walk(definition.nodes[0]) if isinstance(node, _FUNCTIONS))
    node = next((node for node in inside if getattr(node, "name", "<lambda>") == code.co_name), None)
    if node is None:
        return {}
    spec = node.args
    positional = [*spec.posonlyargs, *spec.args]
    pairs = [*zip(reversed(positional), reversed(spec.defaults), strict=False)]
    pairs += [(arg, value) for arg, value in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if value]
    return {arg.arg: value for arg, value in pairs}


def global_names(code: CodeType) -> set[str]:
    """Names that code, and code inside it, looks up in its module."""
    steps = (step for inner in (code, *_inner_codes(code)) for step in dis.get_instructions(inner))
    return {str(step.argval) for step in steps if step.opname in _GLOBAL_LOADS}


def _inner_codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _inner_codes(constant)


def _same_code(one: CodeType, other: CodeType) -> bool:
    if _SHAPE(one) != _SHAPE(other) or len(one.co_consts) != len(other.co_consts):
        return False
    return all(
        _same_code(a, b)
        if isinstance(a, CodeType) and isinstance(b, CodeType)
        else type(a) is type(b) and (a == b or repr(a) == repr(b))
        for a, b in zip(one.co_consts, other.co_consts, strict=True)
    )


def _around(lambdas: Sequence[Scope], code: CodeType) -> list[Scope]:
    """The smallest of several scopes on one line whose body holds all positions of the code."""
    places = [place for place in code.co_positions() if None not in place and place[2] != 0 and place[3] != 0]
    fitting: list[Scope] = []
    for node in lambdas:
        body = node.body if isinstance(node, ast.Lambda) else node
        start, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
        if places and all(start <= (p[0], p[2]) and (p[1], p[3]) <= end for p in places):
            fitting.append(node)
    return fitting[-1:]  # ast.walk goes outside in, so the last is the innermost
