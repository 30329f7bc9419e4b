"""A made-up perturbation screen of the shape of real ones, and the files that GEARS otherwise downloads.

Counts are Poisson around a gene's own rate, a cell's depth and a shift of some genes by the condition; then 10,000 per cell
and logarithms, as GEARS takes them. About one value in five is not zero, as among variable genes of a screen.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

SPARE = 6
"""Perturbed genes that the screen does not measure."""


def condition_names(singles: int, doubles: int) -> list[str]:
    """Conditions as GEARS writes them: ``ctrl``, ``G3+ctrl``, ``G3+G7``; the first few genes are not measured."""
    genes = [f"U{k}" for k in range(SPARE)] + [f"G{k}" for k in range(singles - SPARE)]
    draw = np.random.default_rng(0)
    pairs = {tuple(sorted(draw.choice(singles, 2, replace=False).tolist())) for _ in range(4 * doubles)}
    return [
        "ctrl",
        *(f"{gene}+ctrl" for gene in genes),
        *(f"{genes[a]}+{genes[b]}" for a, b in sorted(pairs)[:doubles]),
    ]


def screen(cells: int, genes: int, *, singles: int = 24, doubles: int = 12, seed: int = 0) -> Any:
    """An ``AnnData`` with ``condition``, ``cell_type`` and ``gene_name``, normalised, CSR float32."""
    import anndata
    import pandas as pd
    from scipy import sparse

    draw = np.random.default_rng(seed)
    names = condition_names(singles, doubles)
    share = np.r_[0.1, np.full(len(names) - 1, 0.9 / (len(names) - 1))]
    code = draw.choice(len(names), cells, p=share)
    code[: 4 * len(names)] = np.repeat(np.arange(len(names)), 4)[:cells]
    rate = np.exp(draw.normal(-2.2, 1.3, genes))
    shift = np.exp(draw.normal(0, 1, (len(names), genes)) * (draw.random((len(names), genes)) < 0.1))
    shift[0] = 1
    parts = []
    for start in range(0, cells, 1000):
        of = code[start : start + 1000]
        depth = np.exp(draw.normal(0, 0.4, (len(of), 1)))
        counts = draw.poisson(rate * shift[of] * depth).astype(np.float32)
        total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
        parts.append(sparse.csr_matrix(np.log1p(counts * (1e4 / total).astype(np.float32))))
    order = draw.permutation(cells)
    matrix = sparse.vstack(parts, format="csr")[order]
    obs = pd.DataFrame(
        {"condition": np.array(names)[code[order]], "cell_type": "K562"},
        index=[f"cell{k}" for k in range(cells)],
    )
    symbols = [f"G{k}" for k in range(genes)]
    return anndata.AnnData(
        matrix,
        obs=obs,
        var=pd.DataFrame({"gene_name": symbols}, index=[f"ENSG{k:05d}" for k in range(genes)]),
    )


def write_downloads(folder: Path, genes: int, singles: int = 24, seed: int = 0) -> None:
    """What ``PertData`` and ``GEARS`` fetch: a gene ontology, its list of genes, and their similarities."""
    draw = np.random.default_rng(seed)
    known = [f"U{k}" for k in range(SPARE)] + [f"G{k}" for k in range(max(genes // 4, singles))]
    terms = {gene: {f"GO:{t}" for t in draw.integers(0, 40, 6).tolist()} for gene in known}
    folder.mkdir(parents=True, exist_ok=True)
    for name, what in (("gene2go_all.pkl", terms), ("essential_all_data_pert_genes.pkl", known)):
        (folder / name).write_bytes(pickle.dumps(what))
    (folder / "go_essential_all").mkdir(exist_ok=True)
    lines = ["source,target,importance"]
    for gene in known:
        for other in known:
            share = len(terms[gene] & terms[other]) / len(terms[gene] | terms[other])
            lines += [f"{gene},{other},{share}"] * (share > 0.1)
    (folder / "go_essential_all" / "go_essential_all.csv").write_text("\n".join(lines) + "\n")
