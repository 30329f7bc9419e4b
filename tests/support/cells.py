"""Cells for tests: the 700 real ones in scanpy's wheel, made-up ones, and anndata's own dense view of either."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import HeteroData

INSTALLED = all(importlib.util.find_spec(name) for name in ("anndata", "scanpy"))
REASON = "anndata and scanpy (the extra singlecell)"

if INSTALLED:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their own deprecations, at import
        import anndata
        import pandas as pd
        from scipy import sparse


class _Scanpy:
    """Imported when it is used: that takes seconds, which every process that collects tests would spend."""

    def __getattr__(self, name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module("scanpy"), name)


scanpy = _Scanpy()


def real_file() -> Path:
    place = importlib.util.find_spec("scanpy")
    assert place is not None
    assert place.origin is not None
    return Path(place.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"


def read(path: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the real file is in an old format
        return anndata.read_h5ad(path)


def gene_graph(names: list[str], features: int = 0, seed: int = 0) -> HeteroData:
    """Genes with two networks, and ``features`` columns of their own."""
    random = np.random.default_rng(seed)
    graph = HeteroData()
    graph["gene"].node_ids = list(names)
    graph["gene"].num_nodes = len(names)
    if features:
        graph["gene"].x = torch.from_numpy(random.standard_normal((len(names), features)).astype(np.float32))
    for name in ("physical", "regulatory"):
        edges = random.integers(0, len(names), (2, 3 * len(names)))
        graph["gene", name, "gene"].edge_index = torch.from_numpy(edges)
    return graph


def made_up(
    count: int, genes: list[str], *, seed: int = 0, density: float = 0.3, floats: bool = False
) -> Any:
    """Cells with counts (or any floats), one without any, and an ``obs`` of every kind."""
    random = np.random.default_rng(seed)
    counts = random.poisson(3, (count, len(genes))) + 1
    values = random.standard_normal(counts.shape) if floats else counts
    dense = np.where(random.random(counts.shape) < density, values, 0).astype(np.float32)
    dense[count // 2] = 0
    types = pd.Categorical(random.choice(["T cell", "B cell", "NK"], count))
    types = types.set_categories([*types.categories, "never seen"])
    obs = pd.DataFrame(
        {
            "cell_type": types,
            "batch": [f"run{k}" for k in random.integers(0, 3, count)],
            "score": random.standard_normal(count),
            "n": random.integers(0, 1000, count),
            "doublet": random.random(count) < 0.1,
        },
        index=[f"cell{k}" for k in range(count)],
    )
    obs.loc[obs.index[1], "cell_type"] = np.nan
    var = pd.DataFrame({"symbol": [name.lower() for name in genes]}, index=list(genes))
    return anndata.AnnData(sparse.csr_matrix(dense), obs=obs, var=var)


def write(cells: Any, path: Path, kind: str = "csr") -> Path:
    """Write cells with ``X`` in one of three forms."""
    out = cells.copy()
    forms = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": lambda x: np.asarray(x.toarray())}
    out.X = forms[kind](sparse.csr_matrix(out.X))
    out.write_h5ad(path)
    return path


def dense_on(cells: Any, names: list[str], matrix: Any = None) -> np.ndarray:
    """anndata's own dense slice, a column per node, zero where the cells do not have the gene."""
    matrix = cells.X if matrix is None else matrix
    matrix = np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix)
    columns = {name: k for k, name in enumerate(cells.var_names)}
    out = np.zeros((cells.n_obs, len(names)), dtype=np.float32)
    for node, name in enumerate(names):
        if name in columns:
            out[:, node] = matrix[:, columns[name]]
    return out
