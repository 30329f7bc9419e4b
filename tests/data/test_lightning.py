"""``LightningDataset`` takes a store unchanged."""

import importlib.util
from pathlib import Path

import pytest
from graphs import cell_graph, random_case

import torchcell_cache as tc


@pytest.mark.skipif(
    not importlib.util.find_spec("pytorch_lightning"), reason="the lightning extra is not installed"
)
@pytest.mark.filterwarnings("ignore")
def test_lightning_dataset_serves_the_right_rows(tmp_path: Path) -> None:
    from torch_geometric.data.lightning import LightningDataset

    case = random_case(cell_graph(), num_samples=9)
    source = tc.PerturbationTable(case.base, case.perturbed, phenotypes={"fitness": [0.5] * 9})
    ds = tc.build(tmp_path, source=source, processor=tc.LazySubgraphRepresentation(), progress=False)
    module = LightningDataset(ds[:6], ds[6:], batch_size=2, num_workers=2)
    names = [[f"Y{k:03d}" for k in p] for p in case.perturbed]
    served = [p for batch in module.train_dataloader() for p in batch["gene"].ids_pert]
    assert sorted(served) == sorted(names[:6])
    assert [p for batch in module.val_dataloader() for p in batch["gene"].ids_pert] == names[6:]
