"""A small project of a user, written to disk, imported and identified, for the tests of code identity."""

import importlib
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchcell_cache.builder.codehash import code_digest

PROC = '''\
"""A processor of a user."""

import functools
from pathlib import Path

import numpy as np

import helpers
from helpers import normalise
from shapes import Base
from shapes import Options as Settings

HERE = Path(__file__).parent
GENES = str(HERE / "genes.csv")
THRESHOLD = 0.5
TABLE = np.arange(4)
NAMES = {"gene", "reaction", "metabolite", "protein", "drug"}
_MEMO = {}


def deep(x):
    return x + 1


def helper(x, power=2):
    """Raise to a power."""
    return deep(x) ** power


def remembered(x):
    if x not in _MEMO:
        _MEMO[x] = x * 7
    return _MEMO[x]


def logged(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def make(scale):
    def scaled(x):
        return x * scale

    return scaled


double = make(2)
step, jump = (lambda x: x - 1), (lambda x: x - 10)


class Processor(Base):
    """Removes things."""

    rate = 0.1
    weights = np.ones(3)

    def __init__(self, mode="any"):
        self.mode = mode
        self.options = Settings(depth=1)

    @logged
    def __call__(self, graph, sample=3):
        from late import finish

        # the total decides
        total = helper(sample) + double(sample) + step(sample) + remembered(sample)
        if total > THRESHOLD and "gene" in NAMES:
            return f"kept {total}"
        return finish(normalise(total) + helpers.twice(total) + TABLE[0] + self.rate + len(GENES))
'''
FILES = {
    "proc.py": PROC,
    "helpers.py": """\
        OFFSET = 3

        def normalise(x):
            return inner(x) / 2

        def inner(x):
            return x - OFFSET

        def twice(x):
            return x * 2

        def unused(x):
            return x * 3
        """,
    "shapes.py": """\
        from dataclasses import dataclass

        @dataclass
        class Options:
            depth: int
            width: int = 4

        class Root:
            def __repr__(self):
                return "root"

        class Base(Root):
            limit = 5

            def reach(self):
                return self.limit
        """,
    "late.py": """\
        def finish(x):
            return x + 100
        """,
}


class Project:
    """A directory with a user's modules."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        for name, text in FILES.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(textwrap.dedent(text))

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text, f"{old!r} is not in {name}"
        (self.root / name).write_text(text.replace(old, new))

    def load(self, module: str = "proc"):
        """Import afresh, as a new process would."""
        forget(self.root.parent)
        sys.path[0] = str(self.root)
        return importlib.import_module(module)

    def identity(self, expression: str = "Processor()", module: str = "proc") -> dict:
        return code_digest(eval(expression, vars(self.load(module))))  # noqa: S307


def forget(directory: Path) -> None:
    """Drop the modules that were imported from below a directory."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(directory)):
            del sys.modules[name]
    importlib.invalidate_caches()


@contextmanager
def project_in(directory: Path) -> Iterator[Project]:
    """A project that may be imported; afterwards the interpreter has forgotten it."""
    path, dont_write = sys.path, sys.dont_write_bytecode
    sys.path = ["", *path]
    sys.dont_write_bytecode = True  # edits within a second would meet stale caches
    try:
        yield Project(directory / "project")
    finally:
        sys.path, sys.dont_write_bytecode = path, dont_write
        forget(directory)
