"""Law 1: what a store gives equals ``processor(source[i])``, and that equals the plain loops of the oracle."""

import itertools
import tempfile
from pathlib import Path

import oracle
import pytest
from graphs import Case, cases, cell_graph, plain_graph, random_case
from hypothesis import HealthCheck, given, settings
from torch_geometric.loader import DataLoader

import torchcell_cache as tc

PROCESSORS = {
    "lazy": (tc.LazySubgraphRepresentation, oracle.lazy),
    "subgraph": (tc.SubgraphRepresentation, oracle.subgraph),
    "perturbation": (tc.Perturbation, oracle.perturbation),
}
STORAGES = ("perturbation", "delta", "full")


def expected(case: Case, kind: str, gpr: str):
    define = PROCESSORS[kind][1]
    return [
        define(case.base, perturbed, rows, case.phenotypes, case.statistics, gpr)
        for perturbed, rows in zip(case.perturbed, case.measurements, strict=True)
    ]


def processor_of(kind: str, gpr: str):
    return tc.Perturbation() if kind == "perturbation" else PROCESSORS[kind][0](gpr=gpr)


def usable(case: Case, gpr: str) -> bool:
    return gpr == "any" or "reaction" not in case.base.node_types or "gene_rules" in case.base["reaction"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_processors_equal_the_plain_definition(case: Case) -> None:
    source = case.source()
    for kind, gpr in itertools.product(PROCESSORS, ("any", "rule")):
        if usable(case, gpr):
            processor = processor_of(kind, gpr)
            for index, want in enumerate(expected(case, kind, gpr)):
                oracle.assert_stores_equal(oracle.stores_of(processor(source[index])), want)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_every_storage_equals_the_plain_definition(case: Case) -> None:
    source = case.source()
    for kind, gpr, storage in itertools.product(PROCESSORS, ("any", "rule"), STORAGES):
        if not usable(case, gpr):
            continue
        with tempfile.TemporaryDirectory() as root:
            ds = tc.build(
                root,
                source=source,
                processor=processor_of(kind, gpr),
                storage=storage,
                shard_size=2,
                progress=False,
            )
            want = expected(case, kind, gpr)
            assert len(ds) == len(want)
            for index, stores in enumerate(want):
                oracle.assert_stores_equal(oracle.stores_of(ds[index]), stores)
            for got, stores in zip(ds.__getitems__(list(range(len(ds)))[::-1]), want[::-1], strict=True):
                oracle.assert_stores_equal(oracle.stores_of(got), stores)
            for got, stores in zip(ds[1:], want[1:], strict=True):
                oracle.assert_stores_equal(oracle.stores_of(got), stores)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("gpr", ["any", "rule"])
@pytest.mark.parametrize("kind", ["lazy", "subgraph"])
def test_every_single_and_double_knockout_of_the_small_cell(
    tmp_path: Path, kind: str, gpr: str, storage: str
) -> None:
    base = cell_graph()
    perturbed = [list(p) for count in (0, 1, 2) for p in itertools.combinations(range(9), count)]
    rows = [[{"fitness": float(k), "size": 0.5, "fitness_se": 1.0}] for k in range(len(perturbed))]
    case = Case(base, perturbed, rows)
    processor = processor_of(kind, gpr)
    ds = tc.build(
        tmp_path, source=case.source(), processor=processor, storage=storage, shard_size=13, progress=False
    )
    for got, want in zip(ds, expected(case, kind, gpr), strict=True):
        oracle.assert_stores_equal(oracle.stores_of(got), want)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_homogeneous_base_graph_works(tmp_path: Path, kind: str, storage: str) -> None:
    base = plain_graph()
    case = random_case(base)
    source, processor = case.source(), PROCESSORS[kind][0]()
    ds = tc.build(tmp_path, source=source, processor=processor, storage=storage, shard_size=5, progress=False)
    edges = base.edge_index.t().tolist()
    for index, perturbed in enumerate(case.perturbed):
        graph = ds[index]
        oracle.assert_stores_equal(oracle.stores_of(graph), oracle.stores_of(processor(source[index])))
        kept = [a not in perturbed and b not in perturbed for a, b in edges]
        if kind == "lazy":
            assert graph.edge_mask.tolist() == kept
            assert graph.edge_index.tolist() == base.edge_index.tolist()
            assert graph.mask.tolist() == [k not in perturbed for k in range(base.num_nodes)]
            assert graph.edge_weight.tolist() == base.edge_weight.tolist()
        if kind == "subgraph":
            old = [k for k in range(base.num_nodes) if k not in perturbed]
            new = {k: n for n, k in enumerate(old)}
            want = [[new[a], new[b]] for (a, b), keep in zip(edges, kept, strict=True) if keep]
            assert graph.edge_index.t().tolist() == want
            assert graph.num_nodes == len(old)
            assert graph.x.tolist() == base.x[old].tolist()
            assert graph.edge_weight.tolist() == [w for w, keep in enumerate(kept) if keep]


@pytest.mark.parametrize(
    "start_method", ["fork", "forkserver"]
)  # spawned: system/reliability/test_fork_spawn.py
def test_worker_processes_give_the_same_samples(tmp_path: Path, start_method: str) -> None:
    case = random_case(cell_graph(), num_samples=8)
    ds = tc.build(
        tmp_path,
        source=case.source(),
        processor=tc.LazySubgraphRepresentation(),
        storage="delta",
        progress=False,
    )
    ds[0]  # the parent has the file open before the workers start
    loader = DataLoader(
        ds,
        batch_size=1,
        num_workers=2 if start_method == "fork" else 1,
        multiprocessing_context=start_method,
        persistent_workers=True,
    )
    for _ in range(2):
        for index, batch in enumerate(loader):
            got = batch.get_example(0)
            want = tc.LazySubgraphRepresentation()(case.source()[index])
            assert got["gene"].ids_pert == want["gene"].ids_pert
            for key in want.edge_types:
                assert got[key].mask.tolist() == want[key].mask.tolist()


def test_base_tensors_are_handed_out_not_copied(tmp_path: Path) -> None:
    case = random_case(cell_graph())
    source = case.source()
    processor = tc.LazySubgraphRepresentation()
    assert processor(source[0])["gene"].x is case.base["gene"].x
    ds = tc.build(tmp_path, source=source, processor=processor, storage="perturbation", progress=False)
    key = ("gene", "physical", "gene")
    assert ds[0][key].edge_index is ds.base_graph[key].edge_index
    assert ds[0]["gene"].x.data_ptr() == ds[3]["gene"].x.data_ptr()


def test_masks_of_living_samples_are_never_overwritten(tmp_path: Path) -> None:
    case = random_case(cell_graph(), num_samples=12)
    ds = tc.build(
        tmp_path,
        source=case.source(),
        processor=tc.LazySubgraphRepresentation(),
        storage="delta",
        progress=False,
    )
    kept_alive = [ds[k] for k in range(len(ds))]
    only_a_mask = ds[3]["gene", "physical", "gene"].mask
    only_a_mask.logical_not_()  # edited in place: must not leak into the next sample that reuses the buffer
    del only_a_mask
    for index, want in enumerate(expected(case, "lazy", "any")):
        oracle.assert_stores_equal(oracle.stores_of(ds[index]), want)
        oracle.assert_stores_equal(oracle.stores_of(kept_alive[index]), want)
