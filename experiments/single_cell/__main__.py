"""From an H5AD file to a trained cell-type classifier: ``python -m experiments.single_cell root=demo/cells epochs=3``.

Settings are ``key=value``: ``root``, ``file`` (an H5AD file; 700 blood cells from scanpy's wheel if left out), ``label``,
``epochs``, ``batch_size``, ``neighbours`` (edges per gene) and ``seed``.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn import GCNConv

import torchcell_cache as tc

EDGES = ("gene", "coexpressed", "gene")


@dataclass(frozen=True, slots=True)
class Settings:
    root: str = "demo/cells"
    file: str = ""
    label: str = "bulk_labels"
    epochs: int = 3
    batch_size: int = 32
    neighbours: int = 8
    seed: int = 0

    @classmethod
    def parse(cls, arguments: list[str]) -> Settings:
        """Settings from ``key=value`` words."""
        kinds = {field.name: type(field.default) for field in fields(cls)}
        given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        wrong = [a for a in arguments if a.split("=", 1)[0] not in kinds or "=" not in a]
        if wrong:
            raise SystemExit(f"unknown: {' '.join(wrong)}; settings are {', '.join(f'{k}=' for k in kinds)}")
        return cls(**{key: kinds[key](value) for key, value in given.items()})


def real_file() -> Path:
    """The file with 700 blood cells and 765 genes in scanpy's wheel."""
    spec = find_spec("scanpy")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install '.[singlecell]', or pass file=cells.h5ad")
    return Path(spec.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"


def gene_graph(file: Path, neighbours: int) -> HeteroData:
    """Every gene with the genes whose expression correlates most with its own, over the first 2,000 cells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's, about the file's age
        import anndata

        cells = anndata.read_h5ad(file, backed="r")
        matrix = np.asarray(cells.X[:2000])
        names = [str(name) for name in cells.var_names]
        cells.file.close()
    correlation = np.abs(np.nan_to_num(np.corrcoef(matrix.T)))
    np.fill_diagonal(correlation, -1)
    nearest = np.argsort(-correlation, axis=1, kind="stable")[:, :neighbours]
    target = np.repeat(np.arange(len(names)), neighbours)
    graph = HeteroData()
    graph["gene"].node_ids = names
    graph["gene"].num_nodes = len(names)
    graph[EDGES].edge_index = torch.from_numpy(np.stack([nearest.reshape(-1), target]))
    return graph


class Classifier(torch.nn.Module):
    """A graph convolution over genes, then one linear layer over all of them."""

    def __init__(self, num_genes: int, num_classes: int, hidden: int = 8) -> None:
        super().__init__()
        self.conv = GCNConv(1, hidden)
        self.out = torch.nn.Linear(num_genes * hidden, num_classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits ``[batch, num_classes]`` from expression ``[batch, num_genes, 1]``; one edge list for all cells."""
        return self.out(torch.relu(self.conv(x, edge_index)).flatten(1))


def accuracy(model: Classifier, dataset: tc.PreprocessedDataset, label: str) -> float:
    """Share of cells whose type is predicted."""
    right = 0
    with torch.no_grad():
        for batch in tc.CacheLoader(dataset, batch_size=128):
            logits = model(batch.features("gene"), batch.base_graph[EDGES].edge_index)
            right += int((logits.argmax(1) == batch.labels(label)).sum())
    return right / len(dataset)


def main(arguments: list[str]) -> float:
    """Build, split, train, test; returns the accuracy on cells that were not trained on."""
    settings = Settings.parse(arguments)
    torch.manual_seed(settings.seed)
    file = Path(settings.file) if settings.file else real_file()
    graph = gene_graph(file, settings.neighbours)
    source = tc.AnnDataSource(file, graph, categories=[settings.label], y=settings.label)
    print(source.report())
    ds = tc.build(settings.root, source=source, processor=None, storage="delta", progress=False)
    kinds = ds.base_graph.obs_categories[settings.label]
    labelled = np.flatnonzero(~np.isnan(ds.columns[settings.label]))
    order = np.random.default_rng(settings.seed).permutation(labelled)
    train, test = ds[order[: len(order) * 4 // 5]], ds[order[len(order) * 4 // 5 :]]
    model = Classifier(len(graph["gene"].node_ids), len(kinds))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loader = tc.CacheLoader(train, batch_size=settings.batch_size, shuffle=True, seed=settings.seed)
    for epoch in range(settings.epochs):
        begun, total = time.perf_counter(), 0.0
        loader.set_epoch(epoch)
        for batch in loader:
            logits = model(batch.features("gene"), batch.base_graph[EDGES].edge_index)
            loss = torch.nn.functional.cross_entropy(logits, batch.labels(settings.label).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        print(
            f"epoch {epoch}: loss {total / len(train):.3f}, {len(train) / (time.perf_counter() - begun):,.0f} cells/s"
        )
    reached = accuracy(model, test, settings.label)
    most = max(np.bincount(test.columns[settings.label].astype(int))) / len(test)
    print(
        f"{reached:.0%} of {len(test)} unseen cells right, {len(kinds)} types; the largest type is {most:.0%}"
    )
    return reached


if __name__ == "__main__":
    main(sys.argv[1:])
