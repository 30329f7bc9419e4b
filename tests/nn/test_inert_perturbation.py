"""The trap of inert perturbations: a model that trains, and runs, and never sees what was deleted.

Whatever feeds the model - shared batches or PyG's - a deleted gene must change the output of its sample, of no other
sample, and training must be able to use it. Where the masks are dropped, nothing may train on the wild type in silence.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.loader import DataLoader

import torchcell_cache as tc
from experiments.train.model import HeteroGin
from torchcell_cache.errors import CacheError, SettingError

GENES, REPEATS, CAUSE = 10, 1, 2
WAYS = ["shared", "to_pyg", "stock"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tc.PreprocessedDataset:
    """The wild type, every single knock-out, and a double; growth stops without one of the genes."""
    base = tc.testing.tiny_graph(GENES)
    perturbed = [[], *([k] for k in range(GENES)), [0, CAUSE]] * REPEATS
    growth = [0.0 if CAUSE in genes else 1.0 for genes in perturbed]
    source = tc.PerturbationTable(base, perturbed, phenotypes={"growth": growth})
    root = tmp_path_factory.mktemp("store")
    processor = tc.LazySubgraphRepresentation()
    return tc.build(root, source=source, processor=processor, storage="perturbation", progress=False)


def make_model(dataset: tc.PreprocessedDataset) -> HeteroGin:
    torch.manual_seed(0)
    return HeteroGin(dataset.base_graph, hidden=8)


def batch_of(dataset: tc.PreprocessedDataset, positions: list[int], way: str) -> Any:
    if way == "stock":
        return next(iter(DataLoader(dataset[positions], batch_size=len(positions))))
    shared = dataset.read_batch(positions)
    return shared if way == "shared" else shared.to_pyg()


@pytest.mark.parametrize("way", WAYS)
def test_every_deleted_gene_changes_the_output_of_its_sample(dataset: Any, way: str) -> None:
    model = make_model(dataset)
    with torch.no_grad():
        out = model(batch_of(dataset, list(range(GENES + 2)), way))
    assert bool(((out[1:] - out[0]).abs() > 1e-5).all())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gene", range(GENES))
def test_and_of_no_other_sample(dataset: Any, way: str, gene: int) -> None:
    """Swapping the middle sample's deletion leaves its neighbours' outputs as they are, to the bit."""
    model, other = make_model(dataset), (gene + 1) % GENES
    with torch.no_grad():
        one = model(batch_of(dataset, [0, 1 + gene, 4], way))
        two = model(batch_of(dataset, [0, 1 + other, 4], way))
    assert torch.equal(one[[0, 2]], two[[0, 2]])
    assert bool((one[1] - two[1]).abs() > 1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_message_passing_alone_sees_the_deletion(dataset: Any, way: str) -> None:
    """Also a readout that looks at the neighbours of a deleted gene only."""
    edge_type = ("gene", "physical", "gene")
    source, target = dataset.base_graph[edge_type].edge_index
    model = make_model(dataset)
    model.head = nn.Identity()
    gene = int(source[source != target][0])
    model._read_out = lambda x, kept: x["gene"]  # type: ignore[method-assign]
    with torch.no_grad():
        wild, without = model(batch_of(dataset, [0, 1 + gene], way))
    neighbours = target[(source == gene) & (target != gene)].unique()
    assert bool(((wild - without)[neighbours].abs().sum(-1) > 1e-5).all())


def fit(model: HeteroGin, batch: Any, labels: Tensor, steps: int = 40) -> float:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(steps):
        loss = nn.functional.mse_loss(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("way", WAYS)
def test_training_on_masks_learns_what_the_deletion_does(dataset: Any, way: str) -> None:
    positions = list(range(len(dataset)))
    labels = dataset.read_batch(positions).labels("growth")
    variance = float(labels.var(correction=0))
    assert fit(make_model(dataset), batch_of(dataset, positions, way), labels) < 0.05 * variance


def test_training_on_the_wild_type_does_not(dataset: Any) -> None:
    """What the test above would look like in the trap: the loss cannot fall below the labels' variance."""
    labels = dataset.read_batch(list(range(GENES + 2))).labels("growth")
    wild = dataset.read_batch([0] * len(labels))
    assert fit(make_model(dataset), wild, labels) >= float(labels.var(correction=0)) - 1e-6


def test_dropped_masks_are_refused(dataset: Any) -> None:
    batch = dataset.read_batch([1, 2])
    with pytest.raises(SettingError, match="unperturbed base graph"):
        batch.to_pyg(exclude_keys=["mask"])
    wild = batch.to_pyg(exclude_keys=["mask"], allow_wild_type=True)
    stock = next(iter(DataLoader(dataset[[1, 2]], batch_size=2, exclude_keys=["mask"])))
    for without_masks in (wild, stock):
        with pytest.raises((AttributeError, KeyError), match="mask"):
            make_model(dataset)(without_masks)


def test_masks_that_say_nothing_are_refused(tmp_path: Path) -> None:
    """Genes of a base graph without their edges: every mask is all ones, and the check says so."""
    base = tc.testing.tiny_graph(GENES, metabolism=False)
    for edge_type in base.edge_types:
        base[edge_type].edge_index = base[edge_type].edge_index[:, :0]
        base[edge_type].num_edges = 0
    source = tc.PerturbationTable(base, [[1], [2, 3]], phenotypes={"growth": [1.0, 0.0]})
    dataset = tc.build(tmp_path, source=source, processor=tc.LazySubgraphRepresentation(), progress=False)
    with pytest.raises(CacheError, match="unperturbed base graph"):
        dataset.read_batch([0, 1]).check_not_wild_type()
