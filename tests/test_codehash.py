"""Which edits of a user's code change a processor's identity, and which do not.

The projects are written to disk, imported, identified, edited on disk and imported again.
"""

import ast
import copy
import functools
import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T

import torchcell_cache
from torchcell_cache.errors import SettingError
from torchcell_cache.fingerprint import canonical_json, code_digest, explain

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
    "another base class": (
        "proc.py",
        "class Processor(Base)",
        "class Processor(Base, dict)",
        "proc.Processor",
    ),
    "class of a setting": ("shapes.py", "width: int = 4", "width: int = 5", "shapes.Options"),
    "field of a dataclass": (
        "shapes.py",
        "    depth: int\n",
        "    depth: int\n    x: str = ''\n",
        "shapes.Options",
    ),
    "global number": ("proc.py", "THRESHOLD = 0.5", "THRESHOLD = 0.7", "proc.THRESHOLD"),
    "global array": ("proc.py", "np.arange(4)", "np.arange(5)", "proc.TABLE"),
    "global set": ("proc.py", '"drug"', '"dose"', "proc.NAMES"),
    "global from the module's place": ("proc.py", '"genes.csv"', '"all.csv"', "proc.GENES (assigned)"),
    "what a memo table starts with": ("proc.py", "_MEMO = {}", "_MEMO = {1: 8}", "proc._MEMO (assigned)"),
    "lambda": ("proc.py", "lambda x: x - 1)", "lambda x: x - 2)", "proc.step.source"),
    "which lambda of a line": ("proc.py", "step, jump =", "jump, step =", "proc.step.source"),
    "decorator": (
        "proc.py",
        "return function(*args)",
        "return function(*args[:2])",
        "proc.logged",
    ),
    "decorator removed": ("proc.py", "    @logged\n", "", "proc.Processor"),
    "f-string": ("proc.py", 'f"kept {total}"', 'f"left {total}"', "proc.Processor"),
    "f-string format": ("proc.py", "{total}", "{total:.2f}", "proc.Processor"),
    "operator": ("proc.py", "total > THRESHOLD", "total >= THRESHOLD", "proc.Processor"),
    "keyword": ("proc.py", "and", "or", "proc.Processor"),
    "another function of the same name": (
        "proc.py",
        "import normalise",
        "import twice as normalise",
        "proc.normalise",
    ),
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
    "parentheses and line breaks": (
        "proc.py",
        "deep(x) ** power",
        "(\n        deep(x,)\n        ** power\n    )",
    ),
    "indentation": (
        "proc.py",
        "    def scaled(x):\n        return",
        "    def scaled(x):\n              return",
    ),
    "number notation": ("proc.py", "THRESHOLD = 0.5", "THRESHOLD = 5e-1"),
    "same constant, computed": ("helpers.py", "OFFSET = 3", "OFFSET = 1 + 2"),
    "unused function": ("helpers.py", "x * 3", "x * 4"),
    "unused global": ("proc.py", "THRESHOLD = 0.5", "THRESHOLD = 0.5\nUNUSED = 9"),
    "unused import": ("proc.py", "import helpers\n", "import helpers\nimport json\n"),
    "unused lambda of the line": ("proc.py", "x - 10", "x - 11"),
    "pass": ("shapes.py", "limit = 5", "limit = 5\n    pass"),
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


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # edits within a second would meet stale caches
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    yield Project(tmp_path / "project")
    forget(tmp_path)


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
from torchcell_cache.fingerprint import code_digest, sha256_json

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


# Kinds of processors


def test_torch_geometric_transforms_are_identified_by_name_and_settings():
    plain = code_digest(T.AddSelfLoops())
    assert plain["name"] == "torch_geometric.transforms.add_self_loops.AddSelfLoops"
    assert plain["settings"] == {"attr": "edge_weight", "fill_value": 1.0}
    assert plain["code"] == {}
    assert explain(plain, code_digest(T.AddSelfLoops(fill_value=2.0)))[0] == "settings.fill_value: 1.0 -> 2.0"
    one = code_digest(T.Compose([T.ToUndirected(), T.RandomLinkSplit(num_val=0.1)]))
    other = code_digest(T.Compose([T.ToUndirected(), T.RandomLinkSplit(num_val=0.2)]))
    assert explain(one, other)[0] == "settings.transforms[1].settings.num_val: 0.1 -> 0.2"
    assert code_digest(T.RandomLinkSplit()) == code_digest(T.RandomLinkSplit())


class Net(torch.nn.Module):
    def __init__(self, bias=0.0):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(self.layer.weight, 0.5)
        torch.nn.init.constant_(self.layer.bias, bias)

    def forward(self, data):
        return self.layer(data.x)


def test_torch_modules_are_identified_by_code_and_weights():
    assert code_digest(Net()) == code_digest(Net())
    line, last = explain(code_digest(Net()), code_digest(Net(bias=1.0)))
    assert "layer.settings._parameters.bias: same shape, other values (float32[2]:" in line
    assert last.endswith("other parts equal")


class Transform(T.BaseTransform):
    def __init__(self, **settings):
        vars(self).update(settings)

    def forward(self, data):
        return data


def changes(one, other) -> list[str]:
    return explain(code_digest(Transform(a=one)), code_digest(Transform(a=other)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        (float("nan"), float("inf")),
        ("1", 1),
        (None, False),
        ([1, 2], [2, 1]),
        ({1, 2}, {1, 3}),
        ({1, 2}, [1, 2]),
        ({1: 2}, {"1": 2}),
        ({"$array": 1}, {"$array": 2}),
        (b"a", b"b"),
        (np.float32(0.1), np.float32(0.2)),
        (np.zeros(3), np.zeros(4)),
        (np.array(["a", None], object), np.array(["b", None], object)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
        (torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()),
        (Path("a/b"), Path("a/c")),
        (range(3), range(4)),
        (1j, 2j),
        (T.ToUndirected(), T.AddSelfLoops()),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (functools.partial(max, 1), functools.partial(min, 1)),
        (torch.relu, torch.tanh),
        (np.mean, np.median),
        (torch.float32, torch.float64),
        (lambda x: x, lambda y: y + 0),
        (np.random.default_rng(1), np.random.default_rng(2)),
        (["x"] * 1000, ["x"] * 999 + ["y"]),
        ("x" * 5000, "x" * 4999 + "y"),
        ({"k": list(range(500))}, {"k": list(range(501))}),
        ("\ud800", "\ud801"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_settings_of_every_kind(one, other):
    assert changes(one, other)
    assert not changes(one, copy.deepcopy(one))
    assert len(canonical_json(code_digest(Transform(a=one)))) < 4000


def test_settings_that_contain_themselves():
    loop: list = [1]
    loop.append(loop)
    other: list = [2]
    other.append(other)
    assert changes(loop, other)
    assert not changes(loop, copy.deepcopy(loop))


def test_functions_methods_partials_and_classes(project):
    project.write(
        "kinds.py",
        """\
        import functools, torch
        from helpers import normalise

        def work(graph, k=1):
            return normalise(graph) * k

        def outer(k):
            class Local:
                def __call__(self, graph):
                    return work(graph) * k
            return Local

        class Tool:
            size = 1
            def run(self, graph): return work(graph)
            @classmethod
            def make(cls, graph): return work(graph)
            @staticmethod
            def plain(graph): return work(graph)
            @functools.lru_cache
            def cached(self, graph): return work(graph)

        @torch.no_grad()
        def frozen(graph): return work(graph)

        memo = functools.lru_cache(work)
        """,
    )
    expressions = [
        *(
            "work",
            "lambda graph: work(graph)",
            "outer(2)()",
            "Tool().run",
            "Tool.make",
            "Tool.plain",
            "Tool.cached",
        ),
        *("frozen", "memo", "functools.partial(work, k=3)", "Tool", "torch.no_grad()(work)", "[work][0]"),
    ]
    expressions.remove("lambda graph: work(graph)")  # made by eval, has no source
    before = {expression: project.identity(expression, "kinds") for expression in expressions}
    assert len({canonical_json(value) for value in before.values()}) >= len(expressions) - 3
    project.edit("helpers.py", "inner(x) / 2", "inner(x) / 3")
    for expression in expressions:
        lines = explain(before[expression], project.identity(expression, "kinds"))
        assert lines[0].startswith("code.helpers.normalise: code changed"), (expression, lines)
    closures = [project.identity(f"outer({k})()", "kinds") for k in (2, 3)]
    assert explain(*closures)[0] == "code.kinds.outer.<locals>.Local[k]: 2 -> 3"
    partials = [project.identity(f"functools.partial(work, k={k})", "kinds") for k in (2, 3)]
    assert explain(*partials)[0] == "settings.keywords.k: 2 -> 3"


def test_using_a_processor_does_not_change_it(project):
    module = project.load()
    processor = module.Processor()
    before = code_digest(processor)
    processor(None, 3)
    assert module._MEMO
    assert code_digest(processor) == before


# Declared versions


def test_cache_version_replaces_the_source(project):
    text = "class P:\n    cache_version = {}\n    def __call__(self, g): return g + {}\n"
    project.write("proc.py", text.format(1, 1))
    before = project.identity("P()")
    assert before == {"kind": "object", "name": "proc.P", "cache_version": 1, "settings": {}, "code": {}}
    project.write("proc.py", text.format(1, 2))
    assert project.identity("P()") == before
    project.write("proc.py", text.format(2, 2))
    assert explain(before, project.identity("P()"))[0] == "cache_version: 1 -> 2"


def test_a_subclass_does_not_hide_behind_the_version_of_its_base(project):
    text = """\
        class P:
            cache_version = {}
            def __call__(self, g): return g
        class Q(P):
            def __call__(self, g): return g + {}
        """
    project.write("proc.py", text.format(1, 1))
    before = project.identity("Q()")
    project.write("proc.py", text.format(1, 2))
    assert explain(before, project.identity("Q()"))[0].startswith("code.proc.Q: code changed")
    project.write("proc.py", text.format(2, 1))
    assert explain(before, project.identity("Q()"))[0] == "code.proc.P.cache_version: 1 -> 2"


def test_cache_version_of_functions_and_bad_versions():
    function = eval("lambda graph: graph")  # noqa: S307
    function.cache_version = 3
    assert code_digest(function)["cache_version"] == 3
    function.cache_version = True
    with pytest.raises(SettingError, match=r"cache_version of .* is True, expected an integer"):
        code_digest(function)


class Declared:
    cache_version = 1

    def __init__(self, values):
        self.values = values
        self.handle = iter(())

    def settings(self):
        return {"values": self.values}


def test_settings_method():
    assert code_digest(Declared([1, 2]))["settings"] == {"values": [1, 2]}
    with pytest.raises(
        SettingError, match=r"settings\(\) must return a JSON dict; value.values is of type set"
    ):
        code_digest(Declared({1}))


# What cannot be identified


@pytest.mark.parametrize(
    "value",
    [
        eval("lambda x: x"),  # noqa: S307
        (x for x in ()),
        functools.partial(eval("lambda x: x"), 1),  # noqa: S307
        type("Made", (), {}),
        np.zeros(2, np.longdouble),
    ],
    ids=["exec'd lambda", "generator", "partial of a lambda", "class without source", "long double"],
)
def test_values_without_identity_are_refused(value):
    with pytest.raises(SettingError, match=r"cannot identify[\s\S]*cache_version = 1") as error:
        code_digest(Transform(deep=[{"here": value}]))
    assert " 0x" not in str(error.value).partition("cannot identify")[0]
    assert "deep[0].here" in str(error.value) or "Made" in str(error.value)


def test_open_files_are_refused(tmp_path):
    with (
        (tmp_path / "x").open("w") as file,
        pytest.raises(SettingError, match=r"an object of type _io\.TextIOWrapper"),
    ):
        code_digest(Transform(file=file))


@pytest.mark.parametrize("value", [3, "text", None, [1], {"a": 1}])
def test_plain_values_are_no_processors(value):
    with pytest.raises(SettingError, match="a processor must be an object, class or function"):
        code_digest(value)


def test_a_file_edited_after_its_import_is_refused(project):
    module = project.load()
    project.edit("proc.py", "x + 1", "x + 2")
    with pytest.raises(SettingError, match=r"deep in .*proc\.py is not the code that is running") as error:
        code_digest(module.helper)
    assert "restart Python" in str(error.value)


def test_lines_moved_after_the_import_are_found(project):
    module = project.load()
    before = code_digest(module.helper)
    project.edit("proc.py", '"""A processor of a user."""', "\n# more\n" * 7)
    assert code_digest(module.helper) == before


def test_the_module_imports_no_torch():
    code = "import sys, torchcell_cache.fingerprint; assert not {'torch', 'lmdb', 'pandas'} & {*sys.modules}"
    root = str(Path(torchcell_cache.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": root})
