"""``build``: the same bytes whatever the workers, any processor, and what it says."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
import torch_geometric.transforms as T
from graphs import cell_graph, plain_graph, random_case
from torch_geometric.data import Data, HeteroData

import torchcell_cache as tc
from torchcell_cache.errors import SampleError, SettingError, SourceContractError, StaleCacheError
from torchcell_cache.store.manifest import manifest_path


def files_of(ds):
    manifest = ds.generation.manifest
    return {f.name: f.sha256 for f in (*manifest.files, *(s.file for s in manifest.shards))}


@pytest.fixture(scope="module")
def case():
    return random_case(cell_graph(), num_samples=60, seed=1)


@pytest.mark.parametrize("storage", ["perturbation", "delta", "full"])
def test_result_does_not_depend_on_workers_byte_for_byte(tmp_path: Path, case, storage: str) -> None:
    built = [
        tc.build(
            tmp_path / str(workers),
            source=case.source(),
            processor=tc.LazySubgraphRepresentation(),
            storage=storage,
            num_workers=workers,
            shard_size=7,
            progress=False,
        )
        for workers in (0, 1, 3)
    ]
    assert files_of(built[0]) == files_of(built[1]) == files_of(built[2])
    assert len({ds.content_digest for ds in built}) == 1


def test_content_digest_does_not_depend_on_shards_but_on_content(tmp_path: Path, case) -> None:
    def digest(name, source, processor=None, **settings):
        processor = processor or tc.LazySubgraphRepresentation()
        ds = tc.build(tmp_path / name, source=source, processor=processor, progress=False, **settings)
        return ds.content_digest

    one = digest("a", case.source(), storage="delta", shard_size=3)
    assert digest("b", case.source(), storage="delta", shard_size=60) == one
    assert digest("c", case.source(), storage="perturbation") != one
    other = random_case(case.base, num_samples=60, seed=2).source()
    assert digest("d", other, storage="delta") != one
    assert digest("e", case.source(), tc.SubgraphRepresentation(), storage="delta") != one


def test_auto_prints_a_comparison_and_keeps_its_choice(tmp_path: Path, case, capfd) -> None:
    arguments = {"source": case.source(), "processor": tc.LazySubgraphRepresentation()}
    ds = tc.build(tmp_path, **arguments)
    said = capfd.readouterr().err
    assert "bytes/sample" in said
    assert "<- chosen" in said
    assert "incidence index" in said
    assert "60 samples as" in said
    assert "full" in said
    assert ds.storage in ("perturbation", "delta")
    again = tc.build(tmp_path, **arguments)
    assert again.generation.manifest.generation == ds.generation.manifest.generation
    assert "chosen" not in capfd.readouterr().err


def test_a_scratch_directory_is_left_empty(tmp_path: Path, case) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arguments = {"source": case.source(), "processor": tc.LazySubgraphRepresentation(), "storage": "delta"}
    plain = tc.build(tmp_path / "plain", **arguments, progress=False)
    built = tc.build(
        tmp_path / "built", **arguments, scratch=scratch, num_workers=2, shard_size=4096, progress=False
    )
    assert files_of(built) == files_of(plain)
    assert list(scratch.iterdir()) == []


def test_an_empty_source_needs_to_be_meant(tmp_path: Path) -> None:
    source = tc.PerturbationTable(cell_graph(), [], phenotypes={"f": []})
    with pytest.raises(SourceContractError, match="0 samples"):
        tc.build(tmp_path, source=source, processor=tc.LazySubgraphRepresentation())
    ds = tc.build(
        tmp_path, source=source, processor=tc.LazySubgraphRepresentation(), allow_empty=True, progress=False
    )
    assert len(ds) == 0
    assert list(ds) == []
    assert len(tc.PreprocessedDataset(tmp_path)) == 0


class Named(list):
    base_graph = None

    def identity(self) -> str:
        return "drugs, second screen"


def test_an_identity_may_be_any_json(tmp_path: Path) -> None:
    source = Named([Data(x=torch.ones(2, 1)), Data(x=torch.zeros(2, 1))])
    ds = tc.build(tmp_path, source=source, storage="full", progress=False)
    assert ds.generation.manifest.fingerprint["source"] == "drugs, second screen"


def test_a_store_whose_schema_cannot_be_read_may_be_replaced(tmp_path: Path) -> None:
    one, two = (tc.testing.tiny_source(3, seed=seed) for seed in (0, 1))
    settings = {"processor": tc.Perturbation(), "storage": "perturbation", "progress": False}
    manifest = tc.build(tmp_path, source=one, **settings).generation.manifest
    other = replace(manifest, schema={**manifest.schema, "records": "unheard of"})
    manifest_path(tmp_path).unlink()
    manifest_path(tmp_path).write_bytes(other.to_bytes())
    with pytest.raises(StaleCacheError, match="built from something else"):
        tc.build(tmp_path, source=two, **settings)
    assert len(tc.build(tmp_path, source=two, on_stale="rebuild", **settings)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"storage": "deltas"}, "'perturbation', 'delta', 'full', 'auto'"),
        ({"on_stale": "ignore"}, "'error', 'rebuild', 'warn'"),
        ({"num_workers": -1}, "from 0 on"),
        ({"shard_size": 0}, "from 1 on"),
        ({"processor": 3}, "processor must be"),
    ],
)
def test_wrong_settings_name_the_valid_ones(tmp_path: Path, case, arguments, message) -> None:
    settings = {"source": case.source(), "processor": tc.LazySubgraphRepresentation(), "progress": False}
    with pytest.raises((SettingError, SampleError), match=message):
        tc.build(tmp_path, **{**settings, **arguments})


def test_processors_on_the_wrong_source_are_refused(tmp_path: Path, case) -> None:
    with pytest.raises(SourceContractError, match="needs perturbed ids"):
        tc.build(tmp_path, source=[plain_graph()], processor=tc.LazySubgraphRepresentation())
    with pytest.raises(SettingError, match="keeps ids only"):
        tc.build(tmp_path, source=[plain_graph()], storage="perturbation")


class DegreeFeature:
    """A user's processor by the two-method protocol."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def settings(self):
        return {"scale": self.scale}

    def process(self, base_graph, sample):
        graph = HeteroData()
        graph["gene"].x = base_graph["gene"].x
        graph["gene"].num_nodes = base_graph["gene"].num_nodes
        kept = torch.ones(graph["gene"].num_nodes, dtype=torch.bool)
        kept[torch.from_numpy(sample.perturbed)] = False
        graph["gene"].kept = kept
        graph["gene"].scaled = base_graph["gene"].x * self.scale
        graph.note = [sample.index, "text", None, (1.5, float("nan"))]
        return graph


@pytest.mark.parametrize("storage", ["delta", "full", "auto"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_users_processor_round_trips(tmp_path: Path, case, storage: str, workers: int) -> None:
    source, processor = case.source(), DegreeFeature(2.0)
    ds = tc.build(
        tmp_path,
        source=source,
        processor=processor,
        storage=storage,
        num_workers=workers,
        shard_size=16,
        progress=False,
    )
    for index in (0, 17, 59):
        got, want = ds[index], processor.process(case.base, source[index])
        note, expected = got.note, want.note
        assert repr(note) == repr(expected)
        oracle.assert_stores_equal(oracle.stores_of(got), oracle.stores_of(want))
        assert got["gene"].x is ds.base_graph["gene"].x
    with pytest.raises(StaleCacheError, match="scale"):
        tc.build(tmp_path, source=source, processor=DegreeFeature(3.0), progress=False)


def test_a_transform_on_a_pyg_dataset_round_trips_and_shares_the_base(tmp_path: Path) -> None:
    base = plain_graph(400)
    samples = [
        Data(x=base.x, edge_index=base.edge_index, num_nodes=400, y=torch.tensor([float(k)]))
        for k in range(9)
    ]
    ds = tc.build(
        tmp_path / "shared", source=tc.sources.PygSource(samples, base), storage="full", progress=False
    )
    copied = [d.clone() for d in samples]
    for k, graph in enumerate(copied):
        graph.x += k + torch.rand_like(graph.x)  # what samples have in common is stored once, too
    apart = tc.build(
        tmp_path / "apart", source=tc.sources.PygSource(copied, base), storage="full", progress=False
    )

    def record(dataset):
        return len(dataset.generation.read([0])[0])

    assert record(ds) < 250
    assert "constants" not in ds.generation.schema
    assert len(apart.generation.read([8])[0]) > base.x.nbytes
    for k in range(9):
        oracle.assert_stores_equal(oracle.stores_of(ds[k]), oracle.stores_of(samples[k]))
        oracle.assert_stores_equal(oracle.stores_of(apart[k]), oracle.stores_of(copied[k]))
    transform = T.Compose([T.ToUndirected(), T.Constant()])
    moved = tc.build(tmp_path / "moved", source=samples, processor=transform, progress=False)
    for k in range(9):
        oracle.assert_stores_equal(oracle.stores_of(moved[k]), oracle.stores_of(transform(samples[k])))


def test_a_builtin_processor_composes_with_transforms(tmp_path: Path, case) -> None:
    def halve(graph):
        graph["gene"].phenotype_values = graph["gene"].phenotype_values / 2
        return graph

    halve.cache_version = 1
    steps = T.Compose([tc.LazySubgraphRepresentation(), halve])
    ds = tc.build(tmp_path, source=case.source(), processor=steps, storage="delta", progress=False)
    want = steps(case.source()[5])
    oracle.assert_stores_equal(oracle.stores_of(ds[5]), oracle.stores_of(want))
    assert np.mean([len(r) for r in ds.generation.read(range(60))]) < 2_000


def test_a_failing_sample_is_named_with_its_traceback(tmp_path: Path, case) -> None:
    def fails(sample):
        if sample.index == 13:
            raise ZeroDivisionError("no growth")
        return tc.Perturbation()(sample)

    fails.cache_version = 1
    for workers in (0, 2):
        with pytest.raises(SampleError, match=r"(?s)sample 13: ZeroDivisionError.*no growth.*test_build\.py"):
            tc.build(
                tmp_path / str(workers),
                source=case.source(),
                processor=fails,
                num_workers=workers,
                shard_size=5,
                progress=False,
            )


def test_the_root_may_be_any_path(tmp_path: Path, case) -> None:
    root = tmp_path / "sp ace é 中文\nline"
    source = case.source()
    ds = tc.build(
        root, source=source, processor=tc.Perturbation(), num_workers=2, shard_size=9, progress=False
    )
    assert len(tc.PreprocessedDataset(os.fspath(root))) == len(ds) == 60
    link = tmp_path / "link"
    link.symlink_to(root)
    assert tc.PreprocessedDataset(link)[3]["gene"].perturbation_indices.tolist() == case.perturbed[3]
