"""The identity of every kind of processor and setting."""

import copy
import functools
import linecache
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from omegaconf import OmegaConf
from user_project import project_in

from torchcell_cache.builder.codehash import code_digest
from torchcell_cache.core.fingerprint import canonical_json, explain


@pytest.fixture
def project(tmp_path):
    with project_in(tmp_path) as made:
        yield made


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


def test_reading_a_hydra_configuration_does_not_change_it():
    config = OmegaConf.create({"paths": {"root": "/data"}, "genes": "${paths.root}/genes", "sizes": [1, 2]})
    before = code_digest(Transform(config=config))
    assert before["settings"]["config"]["genes"] == "/data/genes"
    assert (config.sizes[0], config.genes) == (1, "/data/genes")
    assert code_digest(Transform(config=config)) == before
    config.sizes[1] = 3
    assert (
        explain(before, code_digest(Transform(config=config)))[0] == "settings.config.sizes: [1, 2] -> [1, 3]"
    )


def test_a_processor_of_an_installed_package_is_followed_in_its_package_only(project):
    project.write("site-packages/labpkg/__init__.py", "from labpkg.core import P, Q")
    project.write("site-packages/labpkg/helper.py", "def f(g): return g")
    project.write("site-packages/otherpkg.py", "def other(g): return g")
    project.write(
        "site-packages/labpkg/core.py",
        """\
        from labpkg.helper import f
        from otherpkg import other
        stream = (x for x in ())
        class P:
            def __call__(self, g): return f(other(g))
        class Q:
            def __call__(self, g): return f(g), stream
        """,
    )
    sys.path.insert(1, str(project.root / "site-packages"))
    before = project.identity("P()", "labpkg")
    project.edit("site-packages/otherpkg.py", "return g", "return -g")
    assert project.identity("P()", "labpkg") == before
    project.edit("site-packages/labpkg/helper.py", "return g", "return -g")
    assert explain(before, project.identity("P()", "labpkg"))[0].startswith("code.helper.f: code changed")
    assert project.identity("Q()", "labpkg")["code"] == {"labpkg": {"$installed": "unknown version"}}


def test_code_of_a_notebook(monkeypatch):
    def cell(text: str) -> dict:
        filename = f"/tmp/ipykernel_1/{len(text)}{hash(text)}.py"
        monkeypatch.setitem(linecache.cache, filename, (len(text), None, text.splitlines(True), filename))
        space = {"__name__": "__main__"}
        exec(compile(text, filename, "exec"), space)
        return code_digest(space["P"]())

    text = "K = 2\ndef h(x): return x * K\nclass P:\n    def __call__(self, g): return h(g)\n"
    assert cell(text) == cell(f"# first\n\n{text}")
    assert explain(cell(text), cell(text.replace("x * K", "x + K")))[0].startswith(
        "code.__main__.h: code changed"
    )
    assert explain(cell(text), cell(text.replace("K = 2", "K = 3")))[0] == "code.__main__.K: 2 -> 3"
