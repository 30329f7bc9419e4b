"""Which module of the package imports which, wherever the import stands, and what breaks the rules of the house."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

PACKAGE = "torchcell_cache"
Modules = dict[str, Path]
Arrows = dict[str, set[str]]
LAZY = {
    f"{PACKAGE}{place}"
    for place in (
        "",
        ".sources",
        ".cli.makers",
        ".core.package",
        ".builder.codehash.place",
        ".sources.cells.h5ad",
    )
}
"""May import by a computed name: the face, the door of the sources, and what looks for modules of users or other libraries."""


def floors(page: Path) -> dict[str, int]:
    """Rooms and their floors as the table of the architecture page has them."""
    rows = re.findall(r"^\| (\d+) \| `([\w./]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {room.removesuffix("/").removesuffix(".py"): int(floor) for floor, room in rows}


def modules(root: Path) -> Modules:
    """All modules of the package below ``root``."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((root / PACKAGE).rglob("*.py"))
    }


def arrows(found: Modules) -> Arrows:
    """What each module imports of the package: at the top, inside functions, through ``import_module``; not for typing only."""
    return {name: {t for t in _targets(name, path, found) if t != name} for name, path in found.items()}


def _targets(name: str, path: Path, found: Modules) -> set[str]:
    named = _named(name, path.read_text(encoding="utf-8"))
    return {_module(text, found) for text in named if text.split(".")[0] == PACKAGE} - {""}


@functools.cache
def _named(name: str, text: str) -> set[str]:
    """What a module imports; a copy of the package has the same files but one."""
    tree = ast.parse(text)
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.walk(node)
    }
    named: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            named.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            constant = isinstance(node.args[0], ast.Constant)
            assert constant or name in LAZY, f"{name} imports by a computed name"
            named.update({str(node.args[0].value)} if isinstance(node.args[0], ast.Constant) else ())
    return named


def _module(text: str, found: Modules) -> str:
    while text and text not in found:
        text = text.rpartition(".")[0]
    return text


def room_of(module: str) -> str:
    """The room at the package's root that a module lies in; empty for the face."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else ""


def wrong_arrows(drawn: Arrows, of_floor: dict[str, int]) -> list[str]:
    """Imports that go up, sideways, or into a room that the table does not have."""
    out = []
    for name, targets in drawn.items():
        for target in sorted(targets):
            here, there = room_of(name), room_of(target)
            if here == there or not here:
                continue
            if (
                not there
                or there not in of_floor
                or here not in of_floor
                or of_floor[there] >= of_floor[here]
            ):
                out.append(f"{name} imports {target}")
    return out


def circles(drawn: Arrows) -> list[list[str]]:
    """Modules that import each other, around any corner."""
    reach = {name: _reached(name, drawn) for name in drawn}
    tied = {name: sorted(t for t in reach[name] if name in reach[t]) for name in drawn}
    return sorted({tuple(group) for group in tied.values() if len(group) > 1}, key=len)  # type: ignore[arg-type]


def _reached(start: str, drawn: Arrows) -> set[str]:
    seen: set[str] = set()
    queue = [start]
    while queue:
        for target in drawn.get(queue.pop(), ()):
            if target != PACKAGE and target not in seen:
                seen.add(target)
                queue.append(target)
    return seen
