"""The house: the rooms and floors of the architecture page are those of the code, and every import goes down."""

from __future__ import annotations

import ast
import functools
import shutil
import sys
from pathlib import Path

import fresh
import pytest
from layers import PACKAGE, arrows, circles, floors, modules, room_of, wrong_arrows

ROOT = Path(__file__).resolve().parents[2]
FLOORS = floors(ROOT / "docs" / "architecture.md")
MODULES = modules(ROOT)
ARROWS = functools.cache(lambda: arrows(MODULES))


def test_the_table_has_the_rooms_there_are() -> None:
    assert {room_of(name) for name in MODULES} - {""} == set(FLOORS)
    assert len(FLOORS) <= 15
    assert max(FLOORS.values()) <= 13


def test_every_import_goes_down() -> None:
    assert wrong_arrows(ARROWS(), FLOORS) == []


def test_no_circle_of_files() -> None:
    assert circles(ARROWS()) == []


PLANTED = {
    "up": ("core/checks.py", "import torchcell_cache.data.dataset\n"),
    "inside a function": ("store/manifest.py", "def f():\n    from torchcell_cache.builder import plan\n"),
    "by import_module": (
        "codec/layout.py",
        "from importlib import import_module\ndef f():\n    return import_module('torchcell_cache.store.records')\n",
    ),
    "sideways": ("sources/table.py", "from torchcell_cache.batch import masks\n"),
    "of a name": ("graph/rules.py", "from torchcell_cache import nn\n"),
    "of the face": ("nn/edges.py", "def f():\n    import torchcell_cache as tc\n"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_import_is_found(kind: str, tmp_path: Path) -> None:
    place, text = PLANTED[kind]
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / PACKAGE / place
    path.write_text(path.read_text() + "\n" + text)
    assert len(wrong_arrows(arrows(modules(tmp_path)), FLOORS)) == 1


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    for here, there in (("fingerprint", "urls"), ("urls", "fingerprint")):
        path = tmp_path / PACKAGE / "core" / f"{here}.py"
        path.write_text(
            path.read_text() + f"\ndef planted():\n    from torchcell_cache.core import {there}\n"
        )
    assert circles(arrows(modules(tmp_path))) == [(f"{PACKAGE}.core.fingerprint", f"{PACKAGE}.core.urls")]


def test_an_import_for_typing_only_is_none(tmp_path: Path) -> None:
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / PACKAGE / "core" / "urls.py"
    path.write_text(
        path.read_text()
        + "\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torchcell_cache import nn\n"
    )
    assert wrong_arrows(arrows(modules(tmp_path)), FLOORS) == []


def _lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return 0 if not body else (node.end_lineno or 0) - body[0].lineno + 1


def _examples(tree: ast.Module) -> int:
    """Lines of examples in docstrings, which may be as long as they like."""
    kinds = ast.FunctionDef | ast.ClassDef | ast.Module
    docs = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return sum(
        len(doc.partition("\nExample:\n")[2].splitlines()) + 2 for doc in docs if "\nExample:\n" in doc
    )


def test_files_and_functions_are_short() -> None:
    long = []
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        lines = len(text.splitlines()) - _examples(ast.parse(text))
        if lines > 300:
            long.append(name)
        long += [
            f"{name}.{node.name}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _lines_of(node) > 50
        ]
    assert long == []


READS = """
import sys, torchcell_cache as tc
dataset = tc.PreprocessedDataset(sys.argv[1])
dataset[0], dataset[1:3], dataset.read_batch([0, 1]).to_pyg(), list(tc.CacheLoader(dataset, batch_size=2))
found = sorted(m for m in sys.modules if m.startswith(("torchcell_cache.sources", "torchcell_cache.builder")))
sys.exit(f"loaded: {found}" if found else 0)
"""


def test_reading_loads_neither_sources_nor_builder(tmp_path: Path) -> None:
    import torchcell_cache as tc

    tc.build(
        tmp_path / "store",
        source=tc.testing.tiny_source(4),
        processor=tc.LazySubgraphRepresentation(),
        progress=False,
    )
    done = fresh.run(
        [sys.executable, "-c", READS, str(tmp_path / "store")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
