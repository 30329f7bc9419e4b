"""A store is refused when anything that decides its content changed, and only then; the message names what changed."""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stores
import torch
from graphs import Case
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.errors import StaleCacheError

Room = Callable[[], Path]
LAZY = tc.LazySubgraphRepresentation


def build(root: Path, **changes: Any) -> Any:
    settings = {"processor": LAZY(), "storage": "delta", "shard_size": stores.SHARD, "progress": False}
    return tc.build(root, **{**settings, "source": stores.case().source(), **changes})


def changed(edit: Callable[[Any], Any]) -> Any:
    """The source after an edit of a copy of its base graph or, if the edit gives a case, of its samples."""
    case = stores.case()
    base = case.base.clone()
    result = edit(base)
    return (result if isinstance(result, Case) else replace(case, base=base)).source()


def set_edge(base: Any) -> None:
    base["gene", "physical", "gene"].edge_index[0, 3] += 1


def set_feature(base: Any) -> None:
    base["gene"].x[2, 1] += 1


def set_rule(base: Any) -> None:
    base["reaction"].gene_rules = [*base["reaction"].gene_rules[:-1], base["gene"].node_ids[0]]


def add_edge_type(base: Any) -> None:
    base["gene", "extra", "gene"].edge_index = torch.zeros(2, 1, dtype=torch.int64)
    base["gene", "extra", "gene"].num_edges = 1


def rename_gene(base: Any) -> None:
    base["gene"].node_ids = [*base["gene"].node_ids[:-1], "renamed"]


def set_label(base: Any) -> Any:
    rows = [list(map(dict, measured)) for measured in stores.case().measurements]
    rows[7][0]["size"] = 12.5
    return replace(stores.case(), measurements=rows)


def set_perturbation(base: Any) -> Any:
    ids = [list(genes) for genes in stores.case().perturbed]
    ids[3] = [5] if ids[3] != [5] else [6]
    return replace(stores.case(), perturbed=ids)


def reorder(base: Any) -> Any:
    case = stores.case()
    return replace(case, perturbed=case.perturbed[::-1], measurements=case.measurements[::-1])


def fewer(base: Any) -> Any:
    case = stores.case()
    return replace(case, perturbed=case.perturbed[:-1], measurements=case.measurements[:-1])


SOURCES: list[tuple[Callable[[Any], Any], str]] = [
    (set_edge, r"base_graph\.gene\W+physical\W+gene\W+edge_index"),
    (set_feature, r"base_graph\.gene\.x"),
    (set_rule, r"base_graph\.reaction\.gene_rules"),
    (add_edge_type, r"base_graph\.gene\W+extra\W+gene.*new"),
    (rename_gene, r"base_graph\.gene\.node_ids"),
    (set_label, r"source\..*values"),
    (set_perturbation, r"source\..*perturbed"),
    (reorder, r"source\..*perturbed"),
    (fewer, r"source\..*num_samples.*21 -> 20"),
]


@pytest.fixture
def built(room: Room) -> Path:
    root = room()
    build(root)
    return root


@pytest.mark.parametrize(("edit", "named"), SOURCES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_changed_source_is_named(built: Path, edit: Callable[[Any], Any], named: str) -> None:
    with pytest.raises(StaleCacheError, match=named) as caught:
        build(built, source=changed(edit))
    assert str(built) in str(caught.value)
    assert "on_stale='rebuild'" in str(caught.value)
    assert "equal" in str(caught.value), "how much did not change"
    assert caught.value.code == 65
    with pytest.raises(StaleCacheError, match=named):
        tc.PreprocessedDataset(built, source_dataset=changed(edit))
    build(built)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"processor": LAZY(gpr="rule")}, r"processor\.settings\.gpr: 'any' -> 'rule'"),
        ({"processor": tc.Perturbation()}, r"processor\.name.*LazySubgraphRepresentation.*Perturbation"),
        ({"storage": "perturbation"}, r"storage: 'delta' -> 'perturbation'"),
        ({"storage": "full"}, r"storage: 'delta' -> 'full'"),
    ],
)
def test_a_changed_setting_is_named(built: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(StaleCacheError, match=named):
        build(built, **changes)


def test_the_source_alone_can_be_compared_without_the_processor(built: Path) -> None:
    assert len(tc.PreprocessedDataset(built, source_dataset=stores.case().source())) == stores.COUNT


# A user's own processor: a module of his that is edited between two runs.

MODULE = '''
import torch
from helpers import shift

LIMIT = 3

class Base:
    def helper(self, graph):
        return graph.x * 2

class Mine(Base):
    """A processor."""
    scale = 1.5

    def __init__(self, power=1):
        self.power = power

    def process(self, base_graph, sample):
        # a comment
        graph = sample.clone()
        graph.x = shift(self.helper(graph)) * self.scale ** self.power + LIMIT
        return graph

    def settings(self):
        return {"power": self.power}

def transform(graph, offset=1.0):
    graph = graph.clone()
    graph.x = graph.x + offset + LIMIT
    return graph
'''
HELPERS = """
def shift(x):
    return x - 1
"""

REAL = [
    ("return graph.x * 2", "return graph.x * 3", r"mine\.Base"),
    ("scale = 1.5", "scale = 2.5", r"mine\.Mine"),
    ("LIMIT = 3", "LIMIT = 4", r"LIMIT"),
    ("** self.power", "* self.power", r"mine\.Mine"),
    ("return x - 1", "return x - 2", r"helpers\.shift"),
    ("graph = sample.clone()\n", "graph = sample\n", r"mine\.Mine"),
]
VOID = [
    ("# a comment", "# another comment, longer"),
    ('"""A processor."""', '"""The processor, described anew."""'),
    ("        # a comment\n", "\n\n"),
    ("graph.x * 2", "graph.x *  2"),
    ("LIMIT = 3\n", "LIMIT = 3\nUNUSED = 7\n"),
    ("import torch\n", "import torch\nimport json\n"),
]


@pytest.fixture(autouse=True)
def _forget_the_users_modules() -> Iterator[None]:
    """Other tests have modules of these names too."""
    yield
    for name in ("mine", "helpers"):
        sys.modules.pop(name, None)


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, edit: tuple[str, str] = ("", "")) -> types.ModuleType:
    """Import the user's module from files, as a new run of his program would."""
    import importlib
    import linecache

    for name, text in (("mine", MODULE), ("helpers", HELPERS)):
        if edit[0]:
            text = text.replace(*edit)
        (folder / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
    linecache.clearcache()
    importlib.invalidate_caches()
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    if str(folder) not in sys.path:
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module("mine")


def generic(root: Path, processor: Any, **changes: Any) -> Any:
    settings = {"source": stores.graphs(), "storage": "full", "progress": False, **changes}
    return tc.build(root, processor=processor, **settings)


@pytest.mark.parametrize(("old", "new", "named"), REAL)
def test_changed_code_of_a_users_processor_is_named(
    room: Room, monkeypatch: pytest.MonkeyPatch, old: str, new: str, named: str
) -> None:
    root, folder = room(), room()
    generic(root, load(folder, monkeypatch).Mine())
    assert old in MODULE + HELPERS
    with pytest.raises(StaleCacheError, match=rf"processor\..*{named}"):
        generic(root, load(folder, monkeypatch, (old, new)).Mine())
    generic(root, load(folder, monkeypatch).Mine())


@pytest.mark.parametrize(("old", "new"), VOID)
def test_an_edit_that_changes_nothing_is_not_stale(
    room: Room, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    root, folder = room(), room()
    first = generic(root, load(folder, monkeypatch).Mine())
    assert old in MODULE
    again = generic(root, load(folder, monkeypatch, (old, new)).Mine())
    assert again.generation.manifest == first.generation.manifest


def test_changed_settings_defaults_and_closures_of_a_processor_are_named(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, folder = room(), room()
    module = load(folder, monkeypatch)
    generic(root / "a", module.Mine())
    with pytest.raises(StaleCacheError, match=r"settings\.power: 1 -> 2"):
        generic(root / "a", module.Mine(power=2))
    generic(root / "b", module.transform)
    with pytest.raises(StaleCacheError, match=r"mine\.transform"):
        generic(root / "b", load(folder, monkeypatch, ("offset=1.0", "offset=2.0")).transform)

    def closing(amount: float) -> Callable[[Data], Data]:
        def add(graph: Data) -> Data:
            graph = graph.clone()
            graph.x = graph.x + amount
            return graph

        return add

    generic(root / "c", closing(1.0))
    with pytest.raises(StaleCacheError, match="amount"):
        generic(root / "c", closing(2.0))
    generic(root / "c", closing(1.0))


def test_a_moved_or_copied_store_and_a_moved_program_are_not_stale(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, folder, elsewhere = room(), room(), room()
    first = generic(place / "a", load(folder, monkeypatch).Mine())
    (place / "a").rename(place / "b")
    moved = load(elsewhere, monkeypatch)
    assert Path(moved.__file__ or "").parent == elsewhere
    again = generic(place / "b", moved.Mine())
    assert again.generation.manifest == first.generation.manifest
    shutil.copytree(place / "b", place / "c")
    assert generic(place / "c", moved.Mine()).content_digest == first.content_digest


def test_opening_again_and_reading_do_not_make_a_store_stale(built: Path) -> None:
    source = stores.case().source()
    for _ in range(3):
        dataset = build(built, source=source)
        dataset[3], source[2]
    assert build(built).generation.manifest == dataset.generation.manifest
    assert build(built, storage="auto").storage == "delta"
    assert build(built, shard_size=5).generation.manifest.shard_size == stores.SHARD


def test_rebuild_replaces_and_readers_keep_what_they_opened(built: Path) -> None:
    old = tc.PreprocessedDataset(built)
    new = build(built, source=changed(set_perturbation), on_stale="rebuild")
    assert new.generation.manifest.generation != old.generation.manifest.generation
    assert new.perturbed[3].tolist() != old.perturbed[3].tolist()
    assert old[3]["gene"].perturbation_indices.tolist() == stores.case().perturbed[3]
    assert tc.PreprocessedDataset(built).content_digest == new.content_digest
    back = build(built, on_stale="rebuild")
    assert back.content_digest == old.content_digest


def test_warn_uses_the_store_as_it_is(built: Path) -> None:
    with pytest.warns(UserWarning, match=r"(?s)perturbed.*using it all the same"):
        dataset = build(built, source=changed(set_perturbation), on_stale="warn")
    stores.assert_all_samples(dataset, "delta")


def test_a_store_of_something_else_published_while_waiting_is_not_replaced(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first builder holds the lock and publishes; the second one wanted something else."""
    from torchcell_cache.core.locks import LOCK_NAME, BuilderLock
    from torchcell_cache.store.manifest import processed_dir

    root, donor = room(), room()
    build(donor)
    processed_dir(root).mkdir()
    waited = BuilderLock.acquire

    def publish_then_acquire(lock: BuilderLock, timeout: float | None = 0) -> bool:
        if lock.path == processed_dir(root) / LOCK_NAME and not (root / "processed/manifest.json").exists():
            shutil.rmtree(processed_dir(root))
            shutil.copytree(processed_dir(donor), processed_dir(root))
        return waited(lock, timeout)

    monkeypatch.setattr(BuilderLock, "acquire", publish_then_acquire)
    with pytest.raises(StaleCacheError, match="storage"):
        build(root, storage="full")
    assert tc.PreprocessedDataset(root).storage == "delta"
