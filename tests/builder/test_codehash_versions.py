"""Declared versions, and what has no identity: the error says what to declare."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch_geometric.transforms as T
from user_project import project_in

import torchcell_cache
from torchcell_cache.builder.codehash import code_digest
from torchcell_cache.builder.codehash.place import library_name
from torchcell_cache.core.fingerprint import explain
from torchcell_cache.errors import SettingError
from torchcell_cache.processors import LazySubgraphRepresentation


@pytest.fixture
def project(tmp_path):
    with project_in(tmp_path) as made:
        yield made


class Transform(T.BaseTransform):
    def __init__(self, **settings):
        vars(self).update(settings)

    def forward(self, data):
        return data


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


class Subclass(LazySubgraphRepresentation):
    def __call__(self, sample):
        return None


def test_a_built_in_processor_is_identified_by_its_version(monkeypatch):
    before = code_digest(LazySubgraphRepresentation(gpr="rule")), code_digest(Subclass())
    assert before[0]["settings"]["gpr"] == "rule"
    assert before[0]["code"] == {}
    monkeypatch.setattr(LazySubgraphRepresentation, "cache_version", 1001, raising=False)
    lines = explain(before[0], code_digest(LazySubgraphRepresentation(gpr="rule")))
    assert lines[0].startswith("cache_version: ")
    assert lines[0].endswith(" -> 1001")
    (line, _) = explain(before[1], code_digest(Subclass()))
    assert line.startswith("code.torchcell_cache.processors.lazy.LazySubgraphRepresentation.cache_version: ")


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


def test_a_function_that_moved_keeps_its_name():
    assert library_name(torchcell_cache.nn.unmasked) == "torchcell_cache.nn.masked.unmasked"


def test_the_module_imports_no_torch():
    code = "import sys, torchcell_cache.core.fingerprint; assert not {'torch', 'lmdb', 'pandas'} & {*sys.modules}"
    root = str(Path(torchcell_cache.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": root})
