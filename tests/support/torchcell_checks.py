"""What must hold with torchcell itself, in a process of its own: ``python torchcell_checks.py build|read FOLDER``.

``build`` and ``read`` run under different hash seeds. Each check's outcome is a line of ``FOLDER/<stage>.json``.
"""

from __future__ import annotations

import copy
import json
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torchcell_client as client

CHECKS: dict[str, dict[str, Callable[[Any], None]]] = {"build": {}, "read": {}}


def check(*stages: str) -> Callable[[Any], Any]:
    def note(function: Callable[[Any], None]) -> Callable[[Any], None]:
        for stage in stages:
            CHECKS[stage][function.__name__] = function
        return function

    return note


GPR = {("gene", "gpr", "reaction")}
NAMES = (
    *("LazySubgraphRepresentation", "SubgraphRepresentation", "IncidenceSubgraphRepresentation"),
    *("Perturbation", "Unperturbed"),
)


class Place:
    """Stores of one folder, and torchcell's dataset that they are made from."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.folder, self.stage = folder, stage
        self.rooted = folder / "torchcell"
        if stage == "build":
            client.write_records(self.rooted, client.sample_records())
        self.source = client.opened(self.rooted)

    def theirs(self, name: str) -> Any:
        """torchcell's processor."""
        from torchcell.data import graph_processor

        return getattr(graph_processor, name)()

    def wanted(self, name: str) -> list[Any]:
        """What torchcell's own dataset serves through its processor."""
        self.source.process_graph = self.theirs(name)
        out = []
        for k in range(len(self.source)):
            try:
                out.append(self.source.get(k))
            except ValueError:
                out.append(None)
        self.source.process_graph = None
        self.source.close_lmdb()
        return out

    def built(self, name: str, processor: Any) -> Any:
        """Our store, built or found."""
        import torchcell_cache as tc

        root = self.folder / f"{name}-{type(processor).__module__.partition('.')[0]}"
        dataset = tc.Neo4jPreprocessedCellDataset(root=str(root))
        dataset.preprocess_from_source(source_dataset=self.source, graph_processor=processor, progress=False)
        return dataset

    def training(self) -> tuple[Any, Any]:
        """torchcell's dataset of one interaction per sample, and our store of it."""
        import torchcell_cache as tc

        root, store = self.folder / "one-label", self.folder / "one-label-store"
        if not root.exists():
            records = [items[:1] for items in client.sample_records(60)]
            kept = [i for i in records if i[0]["experiment"]["experiment_type"] == "gene interaction"]
            kept = [
                i for i in kept if i[0]["experiment"]["phenotype"]["gene_interaction_p_value"] is not None
            ]
            client.write_records(root, kept)
        theirs = client.opened(root, phenotype_labels=["gene_interaction"])
        dataset = tc.Neo4jPreprocessedCellDataset(str(store), theirs)
        dataset.preprocess_from_source(theirs, self.theirs("LazySubgraphRepresentation"), progress=False)
        return theirs, dataset

    def model(self) -> Any:
        """torchcell's lazy model, small."""
        import torch
        from sortedcontainers import SortedDict
        from torchcell.data.cell_data import GENE_GRAPH_EDGE_RELATION as NAMES_OF
        from torchcell.graph import GeneMultiGraph
        from torchcell.models.hetero_cell_bipartite_dango_gi_lazy import GeneInteractionDango

        torch.manual_seed(0)
        graphs = {NAMES_OF.get(name, name): graph for name, graph in client.small_graphs()[0].items()}
        return GeneInteractionDango(
            gene_num=len(client.GENES),
            hidden_channels=16,
            num_layers=2,
            gene_multigraph=GeneMultiGraph(graphs=SortedDict(graphs)),
            dropout=0.0,
            gene_encoder_config={"encoder_type": "gin"},
        )

    def learnt(self, batch: Any) -> dict[str, Any]:
        """Output, loss and gradients of one step."""
        import torch

        model = self.model()
        torch.manual_seed(1)
        output, _more = model(self.graph, batch)
        loss = torch.nn.functional.mse_loss(output.flatten(), batch["gene"].phenotype_values)
        loss.backward()
        found = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"output": output.detach(), "loss": loss.detach(), **found}

    @property
    def graph(self) -> Any:
        """torchcell's own cell graph."""
        return self.source.cell_graph

    def same_batch(self, got: Any, want: Any) -> None:
        """Every tensor of two batches, ``num_graphs``, and lists of names in any order."""
        assert got.num_graphs == want.num_graphs
        assert set(got.node_types) == set(want.node_types)
        assert set(got.edge_types) == set(want.edge_types)
        for store in want.stores:
            mine = got._global_store if store._key is None else got[store._key]
            names = {name for name in store if name != "num_graphs"}
            assert names <= set(mine.keys()), (store._key, names - set(mine.keys()))
            for name in names:
                value = store[name]
                if self.stage == "read" and store._key in GPR:  # the store's order, and this process's
                    assert name in (
                        "hyperedge_index",
                        "mask",
                        "num_edges",
                        *("num_edges_batch", "num_edges_ptr"),
                    )
                    kept = [s.hyperedge_index[:, s.mask].T.tolist() for s in (mine, store)]
                    assert sorted(kept[0]) == sorted(kept[1])
                elif hasattr(value, "dtype"):
                    assert mine[name].dtype == value.dtype, (store._key, name)
                    assert mine[name].numpy().tobytes() == value.numpy().tobytes(), (store._key, name)
                elif name in ("ids_pert", "perturbed_genes"):
                    assert [sorted(row) for row in mine[name]] == [sorted(row) for row in value]
                else:
                    assert mine[name] == value, (store._key, name)

    def lazy(self) -> Any:
        """The store that most checks are about."""
        return self.built("LazySubgraphRepresentation", self.theirs("LazySubgraphRepresentation"))


def described(graph: Any, by_name: bool = False) -> dict[Any, Any]:
    """Every field with type, dtype, shape and value; names in any order, and with them what is in their order."""
    out: dict[Any, Any] = {}
    for store in graph.stores:
        fields = dict(store._mapping)
        for name in {"ids_pert", "perturbed_genes"} & fields.keys():
            fields[name] = sorted(fields[name])
            fields["perturbation_indices"] = fields["perturbation_indices"].sort().values
        for name, value in fields.items():
            key = store._key, name
            if hasattr(value, "dtype"):
                out[key] = str(value.dtype), tuple(value.shape), value.numpy().tobytes()
            else:
                out[key] = type(value).__name__, value
    return out


def assert_same(got: Any, want: Any, where: str) -> None:
    got, want = described(got), described(want)
    assert got.keys() == want.keys(), (where, got.keys() ^ want.keys())
    for key in want:
        assert got[key] == want[key], (where, key, got[key], want[key])


@check("build")
def every_field_is_theirs(place: Place) -> None:
    """Each processor of theirs and ours: keys, types, dtypes, values; several measurements, no statistics, damped genes."""
    import torchcell_cache as tc

    for name in NAMES:
        wanted = place.wanted(name)
        assert sum(graph is None for graph in wanted) == (2 if name == "Unperturbed" else 0)
        if name == "Unperturbed":  # raises on names of no node, ours keeps them
            chosen = [tc.Unperturbed()]
        else:
            chosen = [place.theirs(name), *([getattr(tc, name)()] if hasattr(tc, name) else [])]
        for processor in chosen:
            dataset = place.built(name, processor)
            assert len(dataset) == len(wanted) == 40
            for k, want in enumerate(wanted):
                if want is not None:
                    assert_same(dataset[k], want, f"{name} {k}")
        if name in ("LazySubgraphRepresentation", "IncidenceSubgraphRepresentation"):
            assert dataset.storage in ("perturbation", "delta"), dataset.storage


@check("build", "read")
def a_name_outside_the_graph_is_kept(place: Place) -> None:
    dataset = place.lazy()
    for k in (9, 30):
        assert client.OUTSIDE in dataset[k]["gene"].ids_pert
        assert len(dataset[k]["gene"].perturbation_indices) == len(dataset[k]["gene"].ids_pert) - 1
    assert dataset.is_any_perturbed_gene_index[client.OUTSIDE] == [9, 30]
    assert client.OUTSIDE not in dataset.gene_set


@check("build")
def the_source_is_the_second_argument(place: Place) -> None:
    import torchcell_cache as tc

    root = str(place.lazy().root)
    for dataset in (
        tc.Neo4jPreprocessedCellDataset(root, place.source),
        tc.Neo4jPreprocessedCellDataset(root=root, source_dataset=place.source),
    ):
        assert dataset.transform is None
        assert len(dataset) == 40
        assert dataset.phenotype_info == place.source.phenotype_info


@check("read")
def another_hash_seed_is_not_stale(place: Place) -> None:
    """Other order of gpr, of its dicts and of labels: opened with its source, built again, verified, and still right."""
    import torchcell_cache as tc

    before = {path.name for path in place.folder.glob("*/processed/gen-*")}
    dataset = place.lazy()
    stored = dataset.cell_graph["gene", "gpr", "reaction"].hyperedge_index
    now = place.source.cell_graph["gene", "gpr", "reaction"].hyperedge_index
    assert not stored.equal(now), "the same order by chance: choose another hash seed"
    assert (
        tc.Neo4jPreprocessedCellDataset(str(dataset.root), place.source).content_digest
        == dataset.content_digest
    )
    turned = client.opened(place.rooted, phenotype_labels=[*reversed(dataset.label_df.columns[1:])])
    assert len(tc.Neo4jPreprocessedCellDataset(str(dataset.root), turned)) == 40
    again = tc.Neo4jPreprocessedCellDataset(root=str(dataset.root))
    again.preprocess_from_source(turned, place.theirs("LazySubgraphRepresentation"), progress=False)
    assert tc.verify(dataset.root, "full", source=turned, progress=False).ok
    assert {path.name for path in place.folder.glob("*/processed/gen-*")} == before
    for k, want in enumerate(place.wanted("LazySubgraphRepresentation")):
        kept = [
            set(map(tuple, graph[key].hyperedge_index[:, graph[key].mask].T.tolist()))
            for graph in (dataset[k], want)
            for key in [("gene", "gpr", "reaction")]
        ]
        assert kept[0] == kept[1], k
        of_types = {
            (dataset[k]["gene"].phenotype_types[t], round(v, 6))
            for t, v in zip(
                dataset[k]["gene"].phenotype_type_indices.tolist(),
                dataset[k]["gene"].phenotype_values.tolist(),
                strict=True,
            )
        }
        theirs = {
            (want["gene"].phenotype_types[t], round(v, 6))
            for t, v in zip(
                want["gene"].phenotype_type_indices.tolist(),
                want["gene"].phenotype_values.tolist(),
                strict=True,
            )
        }
        assert of_types == theirs, k


@check("build", "read")
def dcell_is_theirs(place: Place) -> None:
    """States of terms field by field, as a delta; opened again where the ontology's sets have another order."""
    from torch_geometric.loader import DataLoader

    import torchcell_cache as tc

    source = client.opened(place.rooted, place.theirs("DCellGraphProcessor"), ontology=True)
    wanted = [source[k] for k in range(40)]
    source.close_lmdb()
    for processor in (place.theirs("DCellGraphProcessor"), tc.DCellGraphProcessor()):
        root = place.folder / f"dcell-{type(processor).__module__[:12]}"
        dataset = tc.Neo4jPreprocessedCellDataset(str(root))
        dataset.preprocess_from_source(source, processor, progress=False, storage="delta")
        assert dataset.generation.manifest.shards[0].file.size < 60_000
        for k, whole in enumerate(wanted):
            got, want, states = dataset[k], copy.copy(whole), []
            for graph in (got, want):
                states.append(sorted(map(tuple, graph["gene_ontology"].go_gene_strata_state.tolist())))
                if place.stage == "read":  # rows and labels have the store's order, and this process's
                    del graph["gene_ontology"]["go_gene_strata_state"]
                    for field in [name for name in graph["gene"]._mapping if name.startswith("phenotype")]:
                        del graph["gene"][field]
            assert states[0] == states[1]
            assert_same(got, want, f"DCell {k}")
    if place.stage == "read":
        return
    follow = {"follow_batch": ["go_gene_strata_state"]}
    chosen = [k for k, want in enumerate(wanted) if "phenotype_stat_values" in want["gene"]]
    for mine, other in zip(
        DataLoader(dataset[chosen], 4, **follow),
        DataLoader([wanted[k] for k in chosen], 4, **follow),
        strict=True,
    ):
        place.same_batch(mine, other)


@check("build")
def streams_and_checks_take_their_processors(place: Place) -> None:
    """A stream straight from torchcell's dataset, and the check of a user's processor of three arguments."""
    import torchcell_cache as tc

    wanted = place.wanted("LazySubgraphRepresentation")
    processor = place.theirs("LazySubgraphRepresentation")
    stream = tc.StreamingCacheDataset.from_source(place.source, processor, shuffle=False)
    for k, (got, want) in enumerate(zip(stream, wanted, strict=True)):
        assert_same(got, want, f"stream {k}")
    dataset = tc.build(place.folder / "own", source=place.source, processor=OwnProcessor(), progress=False)
    assert [graph["gene"].names for graph in dataset][:2] == [
        sorted(wanted[k]["gene"].ids_pert) for k in (0, 1)
    ]
    assert dataset.is_any_perturbed_gene_index == place.source.is_any_perturbed_gene_index


class OwnProcessor:
    """A user's own, as torchcell calls processors."""

    cache_version = 1

    def process(self, cell_graph: Any, phenotype_info: Any, data: Any) -> Any:
        from torch_geometric.data import HeteroData

        graph = HeteroData()
        graph["gene"].x = cell_graph["gene"].x
        graph["gene"].names = sorted(
            {p.systematic_gene_name for item in data for p in item["experiment"].genotype.perturbations}
        )
        return graph


INDICES = (
    *("phenotype_label_index", "dataset_name_index", "perturbation_count_index"),
    *("is_any_perturbed_gene_index", "is_any_deletion_gene_index"),
)


@check("build", "read")
def its_own_store_is_imported(place: Place) -> None:
    """What torchcell preprocessed itself, and another process, whose gpr has another order, makes a store of."""
    from torchcell.data.neo4j_preprocessed_cell import Neo4jPreprocessedCellDataset

    import torchcell_cache as tc

    old, root = place.folder / "old", place.folder / "old-records"
    if place.stage == "build":  # torchcell cannot keep a sample without statistics
        kept = [i for k, i in enumerate(client.sample_records()) if k % 4 != 1]
        client.write_records(root, kept)
    source = client.opened(root, phenotype_labels=list(client.LABELS))
    if place.stage == "build":
        opens = source._init_lmdb_read  # which LMDB refuses a second time in one process
        source._init_lmdb_read = lambda **more: None if source.env else opens(**more)
        theirs = Neo4jPreprocessedCellDataset(str(old))
        theirs.preprocess_from_source(source, place.theirs("LazySubgraphRepresentation"))
    source.process_graph = place.theirs("LazySubgraphRepresentation")
    dataset = tc.import_torchcell(
        place.folder / f"imported-{place.stage}",
        store=old,
        base_graph=source.cell_graph,
        trust=True,
        progress=False,
    )
    assert len(dataset) == len(source) == 30
    for k in range(30):
        assert_same(dataset[k], source.get(k), f"imported {k}")
    assert dataset.is_any_perturbed_gene_index == source.is_any_perturbed_gene_index
    source.close_lmdb()


@check("build", "read")
def indices_are_theirs(place: Place) -> None:
    """Keys in the same order, positions, types."""
    dataset = pickle.loads(pickle.dumps(place.lazy()))
    for name in INDICES:
        got, want = getattr(dataset, name), getattr(place.source, name)
        assert got == want, name
        assert list(got) == list(want), name
        assert all(type(k) is int for row in got.values() for k in row)
    assert type(next(iter(dataset.perturbation_count_index))) is int
    assert list(dataset.gene_set) == list(place.source.gene_set)


@check("build", "read")
def labels_are_theirs(place: Place) -> None:
    """``label_df`` to the bit, ``phenotype_info`` in classes, ``cell_graph`` as theirs, ``close_lmdb`` twice."""
    import torchcell_cache as tc

    dataset = tc.Neo4jPreprocessedCellDataset(str(place.lazy().root))
    got, want = dataset.label_df, place.source.label_df
    assert set(got.columns) == set(want.columns)
    assert dict(got.dtypes) == dict(want.dtypes[got.columns])
    want = want.set_index("index")
    for column in got.columns[1:]:
        assert got[column].to_numpy().tobytes() == want[column].loc[got["index"]].to_numpy().tobytes()
    assert [cls.model_fields["label_name"].default for cls in dataset.phenotype_info] == list(got.columns[1:])
    assert set(dataset.phenotype_info) == set(place.source.phenotype_info)
    dataset.close_lmdb()
    dataset.close_lmdb()
    assert dataset[3]["gene"].phenotype_types == list(got.columns[1:])
    assert all(Path(path).exists() for path in dataset.processed_paths)
    assert dataset.cell_graph.clone().to("cpu")["gene"].num_nodes == len(client.GENES)


def split_of(module: Any) -> dict[str, Any]:
    """A data module's split as its files have it."""
    folder = Path(module.cache_dir)
    files = sorted(path for path in folder.rglob("*.json"))
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in files}


@check("build", "read")
def data_modules_give_their_split(place: Place) -> None:
    """Both data modules: indices, details, JSON files, the first batch of an epoch."""
    import torch
    from torchcell.datamodules import CellDataModule
    from torchcell.datamodules.lazy_collate import LazyCollater
    from torchcell.datamodules.perturbation_subset import PerturbationSubsetDataModule
    from torchcell.sequence import GeneSet

    for label, ours in (("cell", place.lazy()), ("train", place.training()[1])):
        theirs = place.source if label == "cell" else place.training()[0]
        theirs.process_graph = place.theirs("LazySubgraphRepresentation")
        found = []
        for who, dataset in (("theirs", theirs), ("ours", ours)):
            folder = place.folder / f"split-{place.stage}-{label}-{who}"
            keys = ["phenotype_label_index", "perturbation_count_index"]
            module = CellDataModule(
                dataset, str(folder), split_indices=keys, batch_size=4, collate_fn=LazyCollater(dataset)
            )
            genes = GeneSet(sorted(client.GENES)[:45])
            part = PerturbationSubsetDataModule(
                module, size=8, batch_size=4, gene_subsets={"some": genes}, collate_fn=LazyCollater(dataset)
            )
            module.setup()
            part.setup()
            torch.manual_seed(5)
            batches = [next(iter(module.train_dataloader()))] if label == "train" else []
            found.append((split_of(module), module.index, module.index_details, part.index, batches))
        theirs.process_graph = None
        theirs.close_lmdb()
        for got, want in zip(*reversed(found), strict=True):
            if isinstance(got, list):
                for mine, other in zip(got, want, strict=True):
                    place.same_batch(mine, other)
            else:
                assert got == want
        assert any("perturbation_subset" in name for name in found[0][0])


@check("build", "read")
def the_model_learns_the_same(place: Place) -> None:
    """Output, loss and every gradient to the bit: to_pyg, an expanding loader, and torchcell's collater on our samples."""
    import torch
    from torch_geometric.data import Batch
    from torchcell.datamodules.lazy_collate import LazyCollater

    import torchcell_cache as tc

    theirs, ours = place.training()
    theirs.process_graph = place.theirs("LazySubgraphRepresentation")
    rows, follow = list(range(6)), ["perturbation_indices"]
    samples = [theirs[k] for k in rows]
    theirs.process_graph = None
    theirs.close_lmdb()
    (packed,) = tc.CacheLoader(ours[rows], batch_size=6)
    (expanded,) = tc.CacheLoader(ours[rows], batch_size=6, expand=True, follow_batch=follow)
    for collated, batches in (
        (
            LazyCollater(theirs, follow_batch=follow)(samples),
            [LazyCollater(ours, follow_batch=follow)([ours[k] for k in rows])],
        ),
        (
            Batch.from_data_list(samples, follow_batch=follow),
            [packed.to_pyg(follow), expanded, Batch.from_data_list(list(ours[rows]), follow_batch=follow)],
        ),
    ):
        want = place.learnt(collated)
        assert len(want) > 40
        for batch in batches:
            place.same_batch(batch, collated)
            got = place.learnt(batch)
            assert got.keys() == want.keys()
            for name, value in want.items():
                assert torch.equal(got[name], value), name


@check("build")
def lightning_trains_the_same(place: Place) -> None:
    """Three steps of torchcell's task on both datasets, also through its data module."""
    import lightning
    import torch
    from torch.utils.data import DataLoader
    from torchcell.datamodules import CellDataModule
    from torchcell.datamodules.lazy_collate import LazyCollater
    from torchcell.trainers.int_hetero_cell import RegressionTask

    theirs, ours = place.training()
    theirs.process_graph = place.theirs("LazySubgraphRepresentation")
    logged: dict[str, list[Any]] = {}

    class Noted(RegressionTask):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.noted.append(loss.detach().clone())
            return loss

    for who, dataset in (("theirs", theirs), ("ours", ours)):
        for way in ("loader", "module"):
            torch.manual_seed(11)
            optimizer = {"type": "AdamW", "lr": 1e-3}
            task = Noted(
                place.model(), dataset.cell_graph, optimizer, None, loss_func=torch.nn.MSELoss(), device="cpu"
            )
            task.noted = logged.setdefault(f"{way}-{who}", [])
            trainer = lightning.Trainer(
                max_steps=3,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=0,
                default_root_dir=str(place.folder),
            )
            collater = LazyCollater(dataset, follow_batch=["perturbation_indices"])
            if way == "loader":
                trainer.fit(task, DataLoader(dataset, batch_size=4, collate_fn=collater))
            else:
                folder = place.folder / f"fit-{who}"
                keys = ["perturbation_count_index"]
                module = CellDataModule(dataset, str(folder), 4, split_indices=keys, collate_fn=collater)
                trainer.fit(task, datamodule=module)
    theirs.process_graph = None
    theirs.close_lmdb()
    for way in ("loader", "module"):
        got, want = logged[f"{way}-ours"], logged[f"{way}-theirs"]
        assert len(want) == 3
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), (got, want)


@check("build")
def what_records_say_selects_and_splits(place: Place) -> None:
    """Dataset and type of perturbation as columns of names, against the records themselves."""
    import torchcell_cache as tc

    dataset, records = place.lazy(), client.sample_records()
    said = [sorted({item["experiment"]["dataset_name"] for item in items}) for items in records]
    assert dataset.names("dataset").tolist() == [" | ".join(names) for names in said]
    types = [
        {p["perturbation_type"] for i in items for p in i["experiment"]["genotype"]["perturbations"]}
        for items in records
    ]
    assert dataset.names("perturbation_type").tolist() == [" | ".join(sorted(names)) for names in types]
    for name, rows in place.source.dataset_name_index.items():
        alone = [k for k in rows if said[k] == [name]]
        found = tc.select(dataset, f"dataset == {name!r}").tolist() if alone else []
        assert found == sorted(alone), name
    split = tc.split_by_group(dataset, "dataset", seed=1)
    kept = [{dataset.names("dataset")[k] for k in split[part].tolist()} for part in ("train", "val", "test")]
    assert sum(map(len, kept)) == len(set.union(*kept))


@check("build")
def measurements_keyed_by_deletions(place: Place) -> None:
    """torchcell's aggregator puts measurements with different damped genes into one sample."""
    from torchcell.data import DeletionKeyedGenotypeAggregator

    import torchcell_cache as tc

    aggregator = DeletionKeyedGenotypeAggregator(str(place.folder / "aggregated"))
    grouped: dict[str, list[Any]] = {}
    for items in client.sample_records(60):
        for item in items:
            grouped.setdefault(aggregator.aggregate_key_raw(item), []).append(item)
    assert max(map(len, grouped.values())) > 3
    client.write_records(place.folder / "by-deletion", list(grouped.values()))
    source = client.opened(place.folder / "by-deletion", place.theirs("LazySubgraphRepresentation"))
    dataset = tc.Neo4jPreprocessedCellDataset(str(place.folder / "by-deletion-store"), source)
    dataset.preprocess_from_source(source, place.theirs("LazySubgraphRepresentation"), progress=False)
    assert dataset.storage == "perturbation"
    for k in range(len(grouped)):
        assert_same(dataset[k], source.get(k), f"by deletion {k}")
    source.close_lmdb()
    for name in INDICES:
        assert list(getattr(dataset, name).items()) == list(getattr(source, name).items()), name


@check("build")
def stores_grow_with_their_records(place: Place) -> None:
    """update and append with torchcell's and a user's processor: samples, indices, what an old source is told."""
    import pytest

    import torchcell_cache as tc

    sources = {}
    for name, part in (("before", slice(40)), ("after", slice(55)), ("tail", slice(40, 55))):
        client.write_records(place.folder / f"grows-{name}", client.sample_records(55)[part])
        sources[name] = client.opened(place.folder / f"grows-{name}")
    for processor in (place.theirs("LazySubgraphRepresentation"), OwnProcessor()):
        for way in ("update", "append"):
            root = place.folder / f"grown-{way}-{type(processor).__name__}"
            tc.build(root, source=sources["before"], processor=processor, progress=False)
            with pytest.raises(tc.errors.StaleCacheError, match="40 -> 55"):
                tc.Neo4jPreprocessedCellDataset(str(root), sources["after"])
            more = sources["after" if way == "update" else "tail"]
            growth = getattr(tc, way)(root, more, processor, progress=False)
            assert growth.num_samples == 55
            assert growth.recomputed == 15 or way == "update"
            dataset = tc.PreprocessedDataset(root)
            sources["after"].process_graph = processor
            for k in range(55):
                assert_same(dataset[k], sources["after"].get(k), f"{way} {k}")
            sources["after"].process_graph = None
            sources["after"].close_lmdb()
            for index in INDICES:
                found = [list(getattr(d, index).items()) for d in (dataset, sources["after"])]
                assert found[0] == found[1], index


@check("build")
def labels_that_are_dicts(place: Place) -> None:
    """Morphology beside others: vectors by torchcell's Perturbation, also asked for by our name; one label alone by ours."""
    from torchcell.datamodels import schema
    from torchcell.datamodels.calmorph_labels import CALMORPH_LABELS, CALMORPH_STATISTICS

    import torchcell_cache as tc

    names, spreads = (sorted(known)[:3] for known in (CALMORPH_LABELS, CALMORPH_STATISTICS))
    records = [items[:1] for items in client.sample_records(30)]
    for k, [item] in enumerate(records):
        if k % 3:
            experiment = item["experiment"]
            spread = dict(zip(reversed(spreads), (0.5, k / 2, 3.0), strict=True)) if k % 2 else None
            shape = schema.CalMorphPhenotype(
                calmorph=dict(zip(reversed(names), (float(k), 1.5, -2.0), strict=True)),
                calmorph_coefficient_of_variation=spread,
            )
            experiment |= {"phenotype": shape.model_dump(), "experiment_type": "calmorph"}
            item["experiment_reference"] |= {
                "phenotype_reference": shape.model_dump(),
                "experiment_reference_type": "calmorph",
            }
    root = place.folder / "shapes"
    client.write_records(root, records)
    source = client.opened(root, place.theirs("Perturbation"))
    wanted = [source.get(k) for k in range(30)]
    assert max(len(graph["gene"].phenotype_values) for graph in wanted) == 3
    for label, processor in (("theirs", place.theirs("Perturbation")), ("ours", tc.Perturbation())):
        dataset = tc.Neo4jPreprocessedCellDataset(str(place.folder / f"shapes-{label}"))
        dataset.preprocess_from_source(source, processor, progress=False)
        for k, want in enumerate(wanted):
            assert_same(dataset[k], want, f"shapes {label} {k}")
        got, want = dataset.label_df.set_index("index"), source.label_df.set_index("index")
        assert got[sorted(got)].equals(want.loc[got.index][sorted(got)])
        assert dataset.phenotype_label_index == source.phenotype_label_index
    source.close_lmdb()
    chosen = client.opened(root, phenotype_labels=["gene_interaction"])
    dataset = tc.Neo4jPreprocessedCellDataset(str(place.folder / "shapes-none"))
    dataset.preprocess_from_source(chosen, tc.Perturbation(), progress=False)
    assert dataset.generation.is_structured
    chosen.process_graph = place.theirs("Perturbation")
    for k in range(30):
        assert_same(dataset[k], chosen.get(k), f"fitness {k}")
    chosen.close_lmdb()


@check("build")
def pinned_splits_and_spawned_workers(place: Place) -> None:
    """torchcell's own files of a pinned split are read again; a worker of its data module gives the same batch."""
    import torch
    from torchcell.datamodules import CellDataModule
    from torchcell.datamodules.lazy_collate import LazyCollater

    theirs, ours = place.training()
    pins: dict[str, Any] = {"pinned_split_indices": {"train": [3], "val": [4, 5], "test": [0, 1]}}
    settings = {"split_indices": ["perturbation_count_index"], "batch_size": 4, "random_seed": 9, **pins}
    folder = place.folder / "pinned"
    modules = [CellDataModule(theirs, str(folder / "theirs"), **settings)]
    modules += [CellDataModule(ours, str(folder / name), **settings) for name in ("ours", "theirs")]
    files = [(module.index, split_of(module))[1] for module in modules]
    assert files[0] == files[1] == files[2]
    assert {4, 5} <= set(modules[2].index.val)
    first = []
    for workers in (0, 1):
        more = {"num_workers": workers, "persistent_workers": False, "collate_fn": LazyCollater(ours)}
        module = CellDataModule(ours, str(folder / "theirs"), **settings, **more)
        module.setup()
        torch.manual_seed(3)
        first.append(next(iter(module.train_dataloader())))
    place.same_batch(first[1], first[0])


@check("build", "read")
def the_transformer_learns_the_same(place: Place) -> None:
    """The cell graph transformer on torchcell's Perturbation and Lazy samples: loss with its graph's part, and all gradients."""
    import torch
    from torch_geometric.data import Batch
    from torchcell.models.cell_graph_transformer import CellGraphTransformer

    import torchcell_cache as tc

    def learnt(graph: Any, batch: Any) -> dict[str, Any]:
        torch.manual_seed(2)
        heads = {"physical_interaction": {"layer": 0, "head": 1, "lambda": 1.0}}
        regularised = {"regularized_heads": heads, "row_sampling_rate": 0.5}
        model = CellGraphTransformer(len(client.GENES), 16, 2, 2, graph, regularised, {"num_heads": 2}, 0.1)
        output, more = model(graph, batch)
        loss = torch.nn.functional.mse_loss(output.flatten(), batch["gene"].phenotype_values)
        loss = loss + more["graph_reg_loss"]
        loss.backward()
        assert more["graph_reg_loss"] > 0
        return {
            "output": output.detach(),
            "loss": loss.detach(),
            **{n: p.grad for n, p in model.named_parameters()},
        }

    theirs, lazy = place.training()
    follow, rows = ["perturbation_indices"], list(range(6))
    for name in ("Perturbation", "LazySubgraphRepresentation"):
        theirs.process_graph = place.theirs(name)
        collated = Batch.from_data_list([theirs.get(k) for k in rows], follow_batch=follow)
        theirs.process_graph = None
        theirs.close_lmdb()
        dataset = lazy
        if name == "Perturbation":
            dataset = tc.Neo4jPreprocessedCellDataset(str(place.folder / "one-label-perturbation"))
            dataset.preprocess_from_source(theirs, place.theirs(name), progress=False)
        want = learnt(theirs.cell_graph, collated)
        assert len(want) > 25
        (packed,) = tc.CacheLoader(dataset[rows], batch_size=6)
        (expanded,) = tc.CacheLoader(dataset[rows], batch_size=6, expand=True, follow_batch=follow)
        for batch in (packed.to_pyg(follow), expanded):
            place.same_batch(batch, collated)
            got = learnt(dataset.cell_graph, batch)
            assert got.keys() == want.keys()
            for key, value in want.items():
                assert (value is None) == (got[key] is None), key
                assert value is None or torch.equal(got[key], value), key


@check("build")
def labels_are_normalised_the_same(place: Place) -> None:
    """The same statistics and samples, also through a loader; what is stored stays as it is."""
    import torch
    from torchcell.transforms.coo_regression_to_classification import COOLabelNormalizationTransform

    import torchcell_cache as tc

    theirs, ours = place.training()
    theirs.process_graph = place.theirs("LazySubgraphRepresentation")
    before = [ours[k]["gene"].phenotype_values.clone() for k in range(len(ours))]
    for strategy in ("standard", "minmax", "robust"):
        configs = {"gene_interaction": {"strategy": strategy}}
        mine, other = (COOLabelNormalizationTransform(d, configs) for d in (ours, theirs))
        assert mine.stats == other.stats
        ours.transform, theirs.transform = mine, other
        for k in range(len(ours)):
            assert_same(ours[k], theirs[k], f"{strategy} {k}")
        (batch,) = tc.CacheLoader(ours, batch_size=len(ours), expand=True)
        wanted = torch.cat([theirs[k]["gene"].phenotype_values for k in range(len(ours))])
        assert batch["gene"].phenotype_values.equal(wanted)
        ours.transform = theirs.transform = None
    theirs.process_graph = None
    theirs.close_lmdb()
    assert all(ours[k]["gene"].phenotype_values.equal(value) for k, value in enumerate(before))


@check("build")
def the_benchmark_runs(place: Place) -> None:
    """In small: losses and gradients agree in all three ways, and every figure is there."""
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    from experiments.benchmarks import bench_torchcell

    rows = bench_torchcell.main(["--small", "--json", str(place.folder / "bench.json")])
    assert json.loads((place.folder / "bench.json").read_text()) == rows
    assert [row["way"] for row in rows] == [*bench_torchcell.WAYS] * 2
    for k, row in enumerate(rows):
        theirs = rows[k - k % 3]
        for what in ("loss", "gradient"):
            apart = [abs(a - b) / abs(b) for a, b in zip(row[what], theirs[what], strict=False)]
            assert max(apart) <= (1e-3 if row["way"] == "shared" else 0), (row["way"], what, apart)
        assert min(row[part] for part in (*bench_torchcell.PARTS, "all")) > 0


def run(stage: str, folder: Path) -> None:
    place_path = client.fetched()
    assert place_path is not None
    client.put_on_path(place_path)
    began = time.perf_counter()
    place = Place(folder, stage)
    outcome: dict[str, str] = {"(imports)": f"{time.perf_counter() - began:.1f} s"}
    for name, function in CHECKS[stage].items():
        began = time.perf_counter()
        try:
            function(place)
            outcome[name] = "ok"
        except BaseException:
            outcome[name] = traceback.format_exc()
        outcome[f"({name})"] = f"{time.perf_counter() - began:.1f} s"
    (folder / f"{stage}.json").write_text(json.dumps(outcome, indent=1))


if __name__ == "__mp_main__":  # a worker that was spawned
    client.put_on_path(client.fetched() or Path())
if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
