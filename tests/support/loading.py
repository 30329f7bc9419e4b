"""A store to load from, and what stock PyG makes of the same samples."""

import numpy as np
from graphs import cell_graph, random_case
from torch_geometric.loader import DataLoader

import torchcell_cache as tc

COUNT = 23


def make_source(count=COUNT, seed=2):
    labels = np.random.default_rng(seed).random((2, count)).astype(np.float32)
    perturbed = random_case(cell_graph(), num_samples=count, seed=seed).perturbed
    return tc.PerturbationTable(
        cell_graph(), perturbed, phenotypes={"fitness": labels[0]}, statistics={"fitness_se": labels[1]}
    )


def build(root, source, **settings):
    processor = settings.pop("processor", tc.LazySubgraphRepresentation())
    return tc.build(root, source=source, processor=processor, shard_size=7, progress=False, **settings)


def graphs_of(source, processor=None):
    """The samples as the processor makes them, without any store."""
    processor = processor or tc.LazySubgraphRepresentation()
    return [processor.process(source.base_graph, source[k]) for k in range(len(source))]


def stock(graphs, **settings):
    """Batches of PyG's own loader."""
    return list(DataLoader(graphs, **settings))


def rows(loader):
    """Store positions of each batch."""
    return [batch.indices.tolist() for batch in loader]
