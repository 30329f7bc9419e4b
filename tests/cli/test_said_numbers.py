"""What is said about a store: numbers as numbers, what failed by its name, what is missing by its package."""

import json
import sys

import pytest
import torch
from torch_geometric.data import Data, HeteroData

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.errors import SettingError


def texts_with_numbers(value):
    """Texts that begin with a count, anywhere inside."""
    if isinstance(value, dict):
        return [found for part in value.values() for found in texts_with_numbers(part)]
    if isinstance(value, list):
        return [found for part in value for found in texts_with_numbers(part)]
    return [value] if isinstance(value, str) and value.replace(",", "").split(" ")[0].isdigit() else []


def test_counts_of_a_base_graph_are_numbers(tmp_path, capsys) -> None:
    hetero = HeteroData()
    hetero["gene"].num_nodes, hetero["reaction"].num_nodes = 1500, 3
    hetero["gene", "physical", "gene"].edge_index = torch.zeros(2, 2000, dtype=torch.long)
    hetero["gene", "gpr", "reaction"].hyperedge_index = torch.zeros(2, 5, dtype=torch.long)
    plain = Data(num_nodes=1200, edge_index=torch.zeros(2, 7, dtype=torch.long))
    wanted = {
        "hetero": {
            "gene": {"nodes": 1500},
            "reaction": {"nodes": 3},
            "gene|physical|gene": {"edges": 2000},
            "gene|gpr|reaction": {"edges": 5},
        },
        "plain": {"nodes": 1200, "edges": 7},
    }
    for name, graph in (("hetero", hetero), ("plain", plain)):
        source = tc.PerturbationTable(graph, [[0], [1]], phenotypes={"fitness": [0.5, 1.0]})
        tc.build(tmp_path / name, source=source, processor=tc.Perturbation(), progress=False)
        assert main(["info", f"root={tmp_path}/{name}", "json=true"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["base_graph"] == wanted[name]
        assert texts_with_numbers({k: v for k, v in facts.items() if k != "built"}) == []
        assert main(["info", f"root={tmp_path}/{name}"]) == 0
        said = capsys.readouterr().out
        assert "1,500 nodes" in said or "1,200" in said


def test_labels_as_a_table_without_pandas(tmp_path, monkeypatch) -> None:
    ds = tc.build(tmp_path, source=tc.testing.tiny_source(3), processor=tc.Perturbation(), progress=False)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SettingError, match=r"pandas(.|\n)*pip install pandas(.|\n)*dataset\.columns"):
        _ = ds.label_df
    assert len(ds.columns["fitness"]) == 3


def test_bench_names_what_could_not_be_measured(tmp_path, capsys) -> None:
    """Some samples have statistics and some none, which PyG cannot collate; processing was measured all the same."""
    labels = {"phenotypes": {"fitness": [0.5] * 8}, "statistics": {"se": [0.1, None] * 4}}
    source = tc.PerturbationTable(tc.testing.tiny_graph(), [[f"G{k}"] for k in range(8)], **labels)
    root = tmp_path / "s"
    tc.build(root, source=source, processor=tc.LazySubgraphRepresentation(), storage="delta", progress=False)
    common = [
        "bench",
        f"root={root}",
        "seconds=1",
        "num_batches=4",
        "workers=[0]",
        "cold=false",
        "progress=false",
    ]
    assert main([*common, "batch_size=28"]) == 0
    said = capsys.readouterr().out
    assert "batches of 8 (28 asked for: the store has no more)" in said
    assert "cannot be said for PyG batches: PyG's collate was not measured (" in said
    assert "processing on the fly was not measured" not in said
    assert "a sample alone costs" in said
    assert main([*common, "batch_size=4", "json=true"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["batch_size"], facts["asked"]) == (4, 4)
    assert set(facts["skipped"]) >= {"pyg collate"}
    assert "on the fly" in facts["stages"]
