"""GEARS's ``PertData`` on a store: each cell once on disk, its control drawn when it is read, no list of graphs in memory.

Use it where ``PertData`` stood; ``load``, ``new_data_process`` and ``prepare_split`` are GEARS's own. Needs cell-gears 0.1.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gears import PertData
from torch_geometric.data import Data

import torchcell_cache as tc

NUM_DE_GENES = 20


class StoredPertData(PertData):  # type: ignore[misc]
    """Cells in ``<dataset>/store``; what GEARS pickles as ``cell_graphs.pkl`` is a view of it, some bytes per cell."""

    def create_dataset_file(self) -> None:
        """Build the store, or open it if it is of these cells; ``dataset_processed`` are cells with their controls."""
        genes = Data(node_ids=list(self.adata.var_names), num_nodes=self.adata.n_vars)
        source = tc.AnnDataSource(self.adata, genes, categories="condition")
        root = Path(self.dataset_path) / "store"
        ds = tc.build(
            root, source=source, processor=None, storage="delta", on_stale="rebuild", progress=False
        )
        per_category = {"pert_idx": self.pert_idx, "de_idx": self.de_idx, "pert": str}
        self.dataset_processed = tc.PairedCells(ds, "condition == 'ctrl'", per_category=per_category)

    def pert_idx(self, condition: str) -> list[int]:
        """Numbers of the perturbed genes among those of GEARS's gene ontology; -1 for controls."""
        found: list[int] | None = self.get_pert_idx(condition)
        return [-1] if condition == "ctrl" or found is None else found

    def de_idx(self, condition: str) -> Any:
        """Numbers of the genes that tell a condition from controls, as GEARS picks them."""
        ranked = self.adata.uns.get("rank_genes_groups_cov_all")
        if ranked is None or condition == "ctrl":
            return [-1] * (1 if ranked is None else NUM_DE_GENES)
        name = self.adata.obs["condition_name"][self.adata.obs["condition"] == condition].iloc[0]
        return np.where(self.adata.var_names.isin(np.array(ranked[name][:NUM_DE_GENES])))[0]

    def cells_of(self, conditions: list[str]) -> tc.PairedCells:
        """The cells of some conditions, in the order in which GEARS lists them."""
        names = self.dataset_processed.names("condition")
        found: tc.PairedCells = self.dataset_processed[
            np.concatenate([np.flatnonzero(names == name) for name in conditions])
        ]
        return found

    def get_dataloader(self, batch_size: int, test_batch_size: int | None = None, **settings: Any) -> Any:
        """GEARS's loaders, from the store.

        Args:
            batch_size: For training.
            test_batch_size: For the other parts.
            settings: What else ``CacheLoader`` takes: ``num_workers``, ``device``, ``seed``, ``rank``, ...
        """
        self.gene_names = self.adata.var.gene_name
        self.node_map = {name: number for number, name in enumerate(self.gene_names)}
        self.dataloader = {}
        for part, conditions in self.set2conditions.items():
            train = part == "train"
            wanted = (
                [name for name in conditions if name != "ctrl"] if self.split == "no_split" else conditions
            )
            self.dataloader[f"{part}_loader"] = tc.CacheLoader(
                self.cells_of(wanted),
                batch_size if train else test_batch_size or batch_size,
                shuffle=part != "test",
                drop_last=train,
                expand=True,
                **settings,
            )
        return self.dataloader
