"""Which edits of a user's code change a processor's identity, and which do not."""

import ast
import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
from user_project import FILES, PROC, Project, project_in

import torchcell_cache
from torchcell_cache.core.fingerprint import canonical_json, explain

# What is edited: file, old text, new text, and the part of the identity that must be named.
# fmt: off
EDITS = {
    "helper in the same module": ("proc.py", "deep(x) ** power", "deep(x) * power", "proc.helper"),
    "nested helper": ("proc.py", "return x + 1", "return x + 2", "proc.deep"),
    "helper of a sibling, from import": ("helpers.py", "inner(x) / 2", "inner(x) / 3", "helpers.normalise"),
    "helper of a helper of a sibling": ("helpers.py", "x - OFFSET", "x + OFFSET", "helpers.inner"),
    "constant of a sibling's helper": ("helpers.py", "OFFSET = 3", "OFFSET = 4", "helpers.OFFSET"),
    "helper of a sibling, attribute": ("helpers.py", "x * 2", "x * 2.0", "helpers.twice"),
    "import inside a function": ("late.py", "x + 100", "x + 101", "late.finish"),
    "closure value": ("proc.py", "make(2)", "make(3)", "proc.double.closure.scale"),
    "closure code": ("proc.py", "x * scale", "x + scale", "proc.double.source"),
    "default argument": ("proc.py", "power=2", "power=3", "proc.helper"),
    "default of the method": ("proc.py", "sample=3", "sample=4", "proc.Processor"),
    "default of the constructor": ("proc.py", 'mode="any"', 'mode="rule"', "proc.Processor"),
    "class attribute": ("proc.py", "rate = 0.1", "rate = 0.2", "proc.Processor"),
    "array as class attribute": ("proc.py", "np.ones(3)", "np.ones(4)", "proc.Processor.weights"),
    "attribute of the base class": ("shapes.py", "limit = 5", "limit = 6", "shapes.Base"),
    "base class of the base class": ("shapes.py", '"root"', '"stem"', "shapes.Root"),
    "another base class":
        ("proc.py", "class Processor(Base)", "class Processor(Base, dict)", "proc.Processor"),
    "class of a setting": ("shapes.py", "width: int = 4", "width: int = 5", "shapes.Options"),
    "field of a dataclass":
        ("shapes.py", "    depth: int\n", "    depth: int\n    x: str = ''\n", "shapes.Options"),
    "global number": ("proc.py", "THRESHOLD = 0.5", "THRESHOLD = 0.7", "proc.THRESHOLD"),
    "global array": ("proc.py", "np.arange(4)", "np.arange(5)", "proc.TABLE"),
    "global set": ("proc.py", '"drug"', '"dose"', "proc.NAMES"),
    "global from the module's place": ("proc.py", '"genes.csv"', '"all.csv"', "proc.GENES (assigned)"),
    "what a memo table starts with": ("proc.py", "_MEMO = {}", "_MEMO = {1: 8}", "proc._MEMO (assigned)"),
    "lambda": ("proc.py", "lambda x: x - 1)", "lambda x: x - 2)", "proc.step.source"),
    "which lambda of a line": ("proc.py", "step, jump =", "jump, step =", "proc.step.source"),
    "decorator": ("proc.py", "return function(*args)", "return function(*args[:2])", "proc.logged"),
    "decorator removed": ("proc.py", "    @logged\n", "", "proc.Processor"),
    "f-string": ("proc.py", 'f"kept {total}"', 'f"left {total}"', "proc.Processor"),
    "f-string format": ("proc.py", "{total}", "{total:.2f}", "proc.Processor"),
    "operator": ("proc.py", "total > THRESHOLD", "total >= THRESHOLD", "proc.Processor"),
    "keyword": ("proc.py", "and", "or", "proc.Processor"),
    "another function of the same name":
        ("proc.py", "import normalise", "import twice as normalise", "proc.normalise"),
    "another library function": ("proc.py", "np.ones(3)", "np.zeros(3)", "proc.Processor"),
    "setting": ("proc.py", "depth=1", "depth=2", "settings.options.settings.depth"),
}

NO_EDITS = {
    "comment": ("proc.py", "# the total decides", "# something else\n        # entirely"),
    "comment at the end": ("proc.py", "rate = 0.1", "rate = 0.1  # percent"),
    "blank lines": ("proc.py", "\ndef helper", "\n\n\n\n\ndef helper"),
    "docstring": ("proc.py", '"""Raise to a power."""', '"""Other\n    words."""'),
    "docstring removed": ("proc.py", '    """Removes things."""\n', ""),
    "module docstring": ("proc.py", '"""A processor of a user."""', ""),
    "annotations": ("proc.py", "def helper(x, power=2):", "def helper(x: 'int', power: int = 2) -> float:"),
    "annotated attribute": ("proc.py", "rate = 0.1", "rate: float = 0.1"),
    "annotated global": ("proc.py", "THRESHOLD = 0.5", "THRESHOLD: 'float' = 0.5"),
    "quotes": ("proc.py", 'f"kept {total}"', "f'kept {total}'"),
    "parentheses and line breaks":
        ("proc.py", "deep(x) ** power", "(\n        deep(x,)\n        ** power\n    )"),
    "indentation":
        ("proc.py", "    def scaled(x):\n        return", "    def scaled(x):\n              return"),
    "number notation": ("proc.py", "THRESHOLD = 0.5", "THRESHOLD = 5e-1"),
    "same constant, computed": ("helpers.py", "OFFSET = 3", "OFFSET = 1 + 2"),
    "unused function": ("helpers.py", "x * 3", "x * 4"),
    "unused global": ("proc.py", "THRESHOLD = 0.5", "THRESHOLD = 0.5\nUNUSED = 9"),
    "unused import": ("proc.py", "import helpers\n", "import helpers\nimport json\n"),
    "unused lambda of the line": ("proc.py", "x - 10", "x - 11"),
    "pass": ("shapes.py", "limit = 5", "limit = 5\n    pass"),
}
# fmt: on


@pytest.fixture
def project(tmp_path):
    with project_in(tmp_path) as made:
        yield made


def test_the_project_runs(project):
    assert project.load().Processor()(None, 3) == "kept 45"


@pytest.mark.parametrize("name", EDITS)
def test_a_real_edit_is_noticed_and_named(project, name):
    file, old, new, part = EDITS[name]
    before = project.identity()
    project.edit(file, old, new)
    lines = explain(before, project.identity())
    where = part if part.startswith("settings.") else f"code.{part}"
    assert any(line.startswith((f"{where}:", f"{where}.")) for line in lines), lines


@pytest.mark.parametrize("name", NO_EDITS)
def test_an_edit_without_effect_is_no_change(project, name):
    before = project.identity()
    project.edit(*NO_EDITS[name])
    assert explain(before, project.identity()) == []


def test_order_of_functions_and_methods_is_no_change(project):
    before = project.identity()
    tree = ast.parse(PROC)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    rest = [node for node in tree.body if node not in functions]
    split = next(i for i, node in enumerate(rest) if "make" in ast.unparse(node))
    rest[-1].body = [*rest[-1].body[:3], *reversed(rest[-1].body[3:])]
    tree.body = [*rest[:split], *reversed(functions), *rest[split:]]
    project.write("proc.py", ast.unparse(tree))
    assert explain(before, project.identity()) == []


def test_moved_and_renamed_directory_is_no_change(project, tmp_path):
    before = project.identity()
    assert explain(before, Project(tmp_path / "elsewhere" / "deep").identity()) == []
    for name, text in FILES.items():  # the same modules inside a package
        inside = text.replace("import helpers", "from . import helpers").replace(
            "from helpers", "from .helpers"
        )
        inside = inside.replace("from shapes", "from .shapes").replace("from late", "from .late")
        project.write(f"package/{name}", inside)
    project.write("package/__init__.py", "")
    # Only the import inside the method is part of the code, and it is spelled differently.
    lines = explain(before, project.identity(module="package.proc"))
    assert all(
        line.startswith(("code.proc.Processor", f"{len(lines)}")) or "other parts" in line for line in lines
    )


def mutations(tree: ast.Module):
    """Copies of a module, each with one operator, number, text or comparison changed."""
    swap = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
    for position, node in enumerate(ast.walk(tree)):
        changed = copy.deepcopy(tree)
        target = list(ast.walk(changed))[position]
        if isinstance(node, ast.BinOp):
            target.op = swap[type(node.op)]()
        elif isinstance(node, ast.Compare) and not isinstance(node.ops[0], ast.In | ast.NotIn):
            target.ops = [ast.Eq()]
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            target.value = node.value + 1
        elif isinstance(node, ast.If):
            target.test = ast.UnaryOp(ast.Not(), node.test)
        elif isinstance(node, ast.Return) and node.value is not None:
            target.value = ast.Tuple([node.value], ast.Load())
        else:
            continue
        yield ast.unparse(ast.fix_missing_locations(changed))


def test_every_small_mutation_is_noticed(project):
    project.edit("proc.py", ", (lambda x: x - 10)", ", None")  # the one thing that is not used
    project.edit("proc.py", "str(HERE / ", "str(HERE.joinpath(")
    project.edit("proc.py", '"genes.csv")', '"genes.csv"))')
    before = project.identity()
    project.write("proc.py", ast.unparse(ast.parse((project.root / "proc.py").read_text())))
    assert explain(before, project.identity()) == []
    seen = [canonical_json(before)]
    for text in mutations(ast.parse((project.root / "proc.py").read_text())):
        project.write("proc.py", text)
        seen.append(canonical_json(project.identity()))
    assert len(seen) > 35
    assert len(set(seen)) == len(seen)


SCRIPT = """
import proc
from torchcell_cache.builder.codehash import code_digest
from torchcell_cache.core.fingerprint import sha256_json

def work(x, names=frozenset({"a", "b", "c", "d"})):
    return [x, {1: "e", "f": {"g", "h"}}, names]

class Outer:
    kinds = {"i", "j", "k", "l", "m"}

    def __init__(self):
        self.names = {"n", "o", "p", "q", "r"}
        self.table = {("s", 1): {2, 3}, "t": 4}

    def __call__(self, graph):
        return work(graph), self.kinds, self.names

def report():
    print(sha256_json([code_digest(Outer()), code_digest(proc.Processor())]))

if __name__ == "__main__":
    report()
"""


def test_hash_seed_working_directory_main_and_path_do_not_matter(project, tmp_path):
    other = Project(tmp_path / "copy" / "project")
    for place in (project, other):
        place.write("run.py", SCRIPT)
    project.write("package/run.py", SCRIPT)
    (tmp_path / "empty").mkdir()

    def run(cwd: Path, *command: object, path: tuple[Path, ...] = (), seed: int = 0) -> str:
        paths = [*path, Path(torchcell_cache.__file__).parents[1]]
        variables = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONHASHSEED": str(seed)}
        done = subprocess.run(
            [sys.executable, "-B", *map(str, command)],
            cwd=cwd,
            env=os.environ | variables,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    results = {
        run(project.root, project.root / "run.py"),
        run(tmp_path, project.root / "run.py", seed=1),
        run(project.root, "run.py", path=(tmp_path / "empty",), seed=2),
        run(project.root, other.root / "run.py", seed=3),
        run(tmp_path, "-m", "run", path=(project.root,), seed=4),
        run(tmp_path, "-c", "import run; run.report()", path=(tmp_path / "empty", project.root), seed=5),
        run(project.root, "-c", "import package.run; package.run.report()", seed=6),
        run(tmp_path, "-OO", project.root / "run.py", seed=7),
    }
    assert len(results) == 1
