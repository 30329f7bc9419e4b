"""Statistics that only some samples have: what every built-in processor gives, and what PyG makes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import cell_graph, plain_graph
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

import torchcell_cache as tc
from torchcell_cache.builder.plan import make_plan
from torchcell_cache.core.samples import Sample
from torchcell_cache.errors import SettingError

FIELDS = [f"phenotype_stat_{part}" for part in ("values", "type_indices", "sample_indices", "types")]
PROCESSORS = [tc.LazySubgraphRepresentation, tc.SubgraphRepresentation, tc.KHopSubgraph]
MEASURED = [[0.25, np.nan], [], [np.nan], [0.5], [np.nan, 0.125]]


def source_of(graph: Any, measured: list[list[float]] = MEASURED) -> tc.PerturbationTable:
    """Rows with any number of measurements, statistics here and there."""
    rows = [[k % 5] for k in range(len(measured))]
    labels = [[1.0 + k] * len(values) for k, values in enumerate(measured)]
    return tc.PerturbationTable(graph, rows, phenotypes={"f": labels}, statistics={"se": measured})


def node_store(sample: Any) -> Any:
    return sample["gene"] if hasattr(sample, "node_types") else sample


@pytest.mark.parametrize("graph", [cell_graph(), plain_graph()], ids=["cell", "plain"])
@pytest.mark.parametrize("storage", ["perturbation", "delta", "full"])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_always_gives_every_sample_the_fields(tmp_path: Path, kind: Any, storage: str, graph: Any) -> None:
    if kind is tc.KHopSubgraph and storage == "perturbation":
        storage = "auto"  # its graphs are stored whole
    source, processor = source_of(graph), kind(statistics="always")
    ds = tc.build(tmp_path, source=source, processor=processor, storage=storage, progress=False)
    for k, values in enumerate(MEASURED):
        at = [m for m, value in enumerate(values) if not np.isnan(value)]
        store = node_store(ds[k])
        assert store.phenotype_stat_values.tolist() == [values[m] for m in at]
        assert store.phenotype_stat_sample_indices.tolist() == at
        assert store.phenotype_stat_type_indices.tolist() == [0] * len(at)
        assert store.phenotype_stat_types == ["se"]
        assert store.phenotype_stat_values.dtype == torch.float32
        assert store.phenotype_stat_sample_indices.dtype == torch.int64
    for order in ([0, 1, 2], [2, 3], [1, 2], [3, 4, 0, 1, 2]):  # also a batch that has none at all
        stock = next(iter(DataLoader(ds[order], len(order))))
        ours = ds.read_batch(order).to_pyg()
        for name in FIELDS[:-1]:
            assert torch.equal(node_store(stock)[name], node_store(ours)[name])
        assert node_store(stock).phenotype_stat_types == node_store(ours).phenotype_stat_types
    assert tc.verify(tmp_path, level="full", progress=False).ok


def test_a_column_that_no_name_stands_for_is_no_statistic() -> None:
    """Of a sample made by hand, which nobody has looked at."""
    sample = Sample(np.array([0]), np.ones((1, 2), dtype=np.float32), ("f",))
    graph = tc.LazySubgraphRepresentation().process(cell_graph(), sample)
    assert graph["gene"].phenotype_values.tolist() == [1.0]
    assert not set(FIELDS) & set(graph["gene"].keys())


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_default_is_as_torchcell_and_no_part_of_the_fingerprint(kind: Any) -> None:
    processor, source = kind(), source_of(cell_graph())
    assert [FIELDS[0] in node_store(processor(source[k])) for k in range(5)] == [
        True,
        False,
        False,
        True,
        True,
    ]
    assert "statistics" not in processor.settings()
    assert kind(statistics="measured").settings() == processor.settings()
    assert kind(statistics="always").settings() == {**processor.settings(), "statistics": "always"}
    with pytest.raises(SettingError, match="statistics='never' is not one of 'measured', 'always'"):
        kind(statistics="never")


def test_perturbation_always_has_them(tmp_path: Path) -> None:
    ds = tc.build(tmp_path, source=source_of(cell_graph()), processor=tc.Perturbation(), progress=False)
    batch = next(iter(DataLoader(ds, 5)))
    assert batch["gene"].phenotype_stat_values.tolist() == [0.25, 0.5, 0.125]
    assert "statistics" not in tc.Perturbation().settings()
    assert Batch.from_data_list([ds[1], ds[2]])["gene"].phenotype_stat_values.shape == (0,)


def test_the_build_says_how_many_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lazy = tc.LazySubgraphRepresentation
    tc.build(tmp_path, source=source_of(cell_graph()), processor=lazy())
    said = capsys.readouterr().err
    assert "2 of 5 samples have no statistic" in said
    assert 'statistics="always"' in said
    for processor, measured in (
        (lazy(statistics="always"), MEASURED),
        (tc.Perturbation(), MEASURED),
        (lazy(), [[0.5], [0.25]]),
        (lazy(), [[np.nan], []]),
    ):
        notes = make_plan(source_of(cell_graph(), measured), processor).notes
        assert not any("statistic" in note for note in notes)
