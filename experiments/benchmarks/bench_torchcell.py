"""torchcell itself against this package: items, collate and step of torchcell's own model, unmodified.

    python -m experiments.benchmarks.bench_torchcell                  # both graphs, some minutes, up to 12 GB
    python -m experiments.benchmarks.bench_torchcell --only own       # torchcell's own graph alone
    python -m experiments.benchmarks.bench_torchcell --small          # to see that it runs

``own`` is the graph torchcell makes of the four STRING networks in the folder of ``$TORCHCELL_CACHE_YEAST``, each pair once and a
self loop per gene, 109 thousand edges, and its triple knock-outs; made-up networks of that size where there is no such folder.
``large`` is the made-up cell of all benchmarks, 2.5 million edges. torchcell is fetched as its tests do.

Each way lives in a process of its own with one thread; all take turns, a step at a time. The first step is not counted, but for
what takes a minute: ways other than shared batches at ``large``. A step is 28 samples read, made a batch, and
``GeneInteractionDango`` (masked GIN) forwards and backwards on it. Losses of shared batches differ by rounding: 2e-14 in double.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import pickle
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import torchcell_cache as tc
from experiments.benchmarks.bench_step import _answer, peak_since
from experiments.benchmarks.harness import Machine, memory_mb, single_thread
from experiments.benchmarks.workload import gene_edge_types, make_workload
from torchcell_cache.nn import shared_conv, shared_edges, shared_input

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

LABEL, STATISTIC = "gene_interaction", "gene_interaction_p_value"
WAYS = {
    "torchcell": "torchcell's store, items, LazyCollater, model",
    "to_pyg": "our store, to_pyg(), the same model",
    "shared": "our store, shared batches, the same layers on one graph",
}
PARTS = ("items", "collate", "step")
BATCHES = 4


class Place(NamedTuple):
    """Stores of one graph, and how large a model and a batch are."""

    name: str
    root: Path
    width: int
    batch: int
    rounds: int

    def warms(self, way: str) -> bool:
        """Whether the first step of a way is not counted."""
        return self.name == "own" or way == "shared"


def own_source(scale: float, count: int) -> Any:
    """torchcell's own graph and triples; made up where there is no data."""
    folder = os.environ.get("TORCHCELL_CACHE_YEAST")
    if scale < 1 or not folder:
        return made_source(scale, count, 108_721)
    graph = tc.sources.yeast_base_graph(folder)
    loops = torch.arange(graph["gene"].num_nodes).expand(2, -1)
    for edge_type in gene_edge_types(graph):  # as networkx has them: pairs once, then self loops
        store = graph[edge_type]
        store.edge_index = torch.cat([store.edge_index[:, : store.edge_index.size(1) // 2], loops], dim=1)
        store.num_edges = store.edge_index.size(1)
    lists, labels = tc.sources.yeast_knockouts(folder)
    triples = [k for k, genes in enumerate(lists) if len(genes) == 3]
    chosen = triples[:: len(triples) // count][:count]
    return table(graph, [lists[k] for k in chosen], [float(labels["fitness"][k]) for k in chosen])


def made_source(scale: float, count: int, total_edges: int | None = None) -> Any:
    """The cell of all benchmarks and triples of it."""
    edges = None if total_edges is None else round(total_edges * scale)
    work = make_workload(0, scale, count, edges)
    return table(work.base_graph, work.samples.perturbed.tolist(), work.samples.labels[:, 1].tolist())


def table(graph: Any, perturbed: list[Any], values: list[float]) -> Any:
    """A source of one label and one statistic: torchcell's store has none for a sample without."""
    labels = {"phenotypes": {LABEL: values}, "statistics": {STATISTIC: [0.05] * len(values)}}
    return tc.PerturbationTable(graph, perturbed, **labels)


def prepare(place: Place, source: Any) -> None:
    """Both stores of the same samples; torchcell's holds what its own method keeps of a sample."""
    import lmdb
    from torchcell.data.neo4j_preprocessed_cell import Neo4jPreprocessedCellDataset

    processor = tc.LazySubgraphRepresentation()
    ours = tc.build(
        place.root / "ours", source=source, processor=processor, storage="perturbation", progress=False
    )
    theirs = Neo4jPreprocessedCellDataset(root=str(place.root / "theirs"))
    path = Path(theirs.processed_dir) / "lmdb"
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=1 << 30) as env, env.begin(write=True) as txn:
        for k in range(len(ours)):
            txn.put(str(k).encode(), pickle.dumps(theirs._extract_mask_indices(ours[k])))
    theirs._save_metadata(len(ours))


def make_model(place: Place, graph: Any) -> Any:
    """torchcell's lazy model; a shared batch goes through its own layers, all else through its own code."""
    from torchcell.models.hetero_cell_bipartite_dango_gi_lazy import GeneInteractionDango

    class Shared(GeneInteractionDango):
        def forward_single(self, data: Any) -> Any:
            batch = data.__dict__.get("shared_batch")
            if batch is None:
                return super().forward_single(data)
            edges = shared_edges(batch)
            x = shared_input(self.preprocessor(self.gene_embedding.weight), batch)
            for layer in self.convs:
                outs = {}
                for name in self.graph_names:
                    wrapper = layer.convs[str(("gene", name, "gene"))]
                    out = shared_conv(wrapper.conv, x, edges["gene", name, "gene"]).flatten(0, 1)
                    out = wrapper.act(wrapper.norm(wrapper.proj(out)))
                    outs[name] = out if wrapper.dropout is None else wrapper.dropout(out)
                x = layer.aggregator(outs)[0].view(len(batch), -1, place.width)
            return x.flatten(0, 1)

    torch.manual_seed(0)
    return Shared(
        gene_num=int(graph["gene"].num_nodes),
        hidden_channels=place.width,
        num_layers=2,
        gene_multigraph={t[1]: None for t in gene_edge_types(graph)},
        norm="layer",
        dropout=0.0,
        gene_encoder_config={"encoder_type": "gin"},
    )


def shared_fields(batch: Any) -> Any:
    """What the model reads of a batch beside its edges."""
    from torch_geometric.data import HeteroData

    fields, kept = HeteroData(), batch.node_mask("gene")
    fields["gene"].pert_mask = ~kept.flatten()
    fields["gene"].batch = torch.arange(len(batch)).repeat_interleave(kept.size(1))
    fields["gene"].perturbation_indices = batch.perturbed
    fields["gene"].perturbation_indices_ptr = batch.perturbed_ptr
    fields["gene"].phenotype_values = batch.labels(LABEL)
    fields.__dict__["shared_batch"] = batch
    return fields


def readers(way: str, place: Place) -> tuple[Any, Callable[[list[int]], Any], Callable[[Any], Any]]:
    """Base graph, what reads samples, and what makes a batch of them."""
    follow = ["perturbation_indices"]
    ours = tc.PreprocessedDataset(place.root / "ours")
    if way == "shared":
        return ours.base_graph, ours.read_batch, shared_fields
    if way == "to_pyg":
        return ours.base_graph, ours.read_batch, lambda batch: batch.to_pyg(follow)
    from torchcell.data.neo4j_preprocessed_cell import Neo4jPreprocessedCellDataset
    from torchcell.datamodules.lazy_collate import LazyCollater

    source = types.SimpleNamespace(cell_graph=ours.base_graph, phenotype_info=[])
    theirs = Neo4jPreprocessedCellDataset(str(place.root / "theirs"), source)
    collate = LazyCollater(theirs, follow_batch=follow)
    return ours.base_graph, lambda rows: [theirs[k] for k in rows], collate


def live(pipe: Any, way: str, place: Place) -> None:
    """A process: steps when told to, then how much memory they took at most."""
    single_thread()
    graph, read, collate = readers(way, place)
    model = make_model(place, graph)
    before = memory_mb("Rss")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    while (number := pipe.recv()) is not None:
        rows = [(number * place.batch + k) % (BATCHES * place.batch) for k in range(place.batch)]
        try:
            times = [time.perf_counter()]
            items = read(rows)
            times.append(time.perf_counter())
            batch = collate(items)
            times.append(time.perf_counter())
            loss = torch.nn.functional.mse_loss(
                model(graph, batch)[0].flatten(), batch["gene"].phenotype_values
            )
            loss.backward()
            times.append(time.perf_counter())
        except (RuntimeError, MemoryError) as error:
            pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0][:100]}")
            continue
        grads = [p.grad.double() for p in model.parameters() if p.grad is not None]
        model.zero_grad(set_to_none=True)
        gradient = float(torch.stack([grad.square().sum() for grad in grads]).sum())
        pipe.send(([1e3 * (b - a) for a, b in itertools.pairwise(times)], float(loss.detach()), gradient))
        del items, batch, loss, grads
    pipe.send(peak_since(before))


def measure(place: Place, source: Any) -> list[dict[str, Any]]:
    """All ways in turns; a row each."""
    fork = multiprocessing.get_context("fork")
    helper = fork.Process(target=prepare, args=(place, source))  # torchcell stays out of this process
    helper.start()
    helper.join()
    if helper.exitcode:
        raise RuntimeError(f"the stores of {place.name} were not made: exit code {helper.exitcode}")
    pipes, processes = {}, []
    for way in WAYS:
        pipes[way], end = fork.Pipe()
        processes.append(fork.Process(target=live, args=(end, way, place), daemon=True))
        processes[-1].start()
        end.close()
    found: dict[str, list[Any]] = {way: [] for way in WAYS}
    for number in range(place.rounds + 1):
        for way in WAYS:
            if number == place.rounds and not place.warms(way):
                continue
            answer = _answer(pipes[way], number) or "killed: not enough memory"
            if isinstance(answer, str):
                raise RuntimeError(f"{place.name}, {way}: {answer}")
            print(f"  {place.name}, {way}: {sum(answer[0]):.0f} ms", flush=True)
            found[way].append(answer)
    rows = []
    edges = sum(source.base_graph[t].edge_index.size(1) for t in gene_edge_types(source.base_graph))
    for way, answers in found.items():
        counted = [times for times, _, _ in answers[place.warms(way) :]]
        row: dict[str, Any] = {
            **place._asdict(),
            "root": None,
            "edges": edges,
            "way": way,
            "peak_mb": _answer(pipes[way], None),
        }
        row |= {part: statistics.median(times[k] for times in counted) for k, part in enumerate(PARTS)}
        row["all"] = statistics.median(map(sum, counted))
        rows.append({**row, "loss": [loss for _, loss, _ in answers], "gradient": [g for _, _, g in answers]})
    for process in processes:
        process.terminate()
        process.join()
    return rows


def shown(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, each beside torchcell."""
    lines = [
        "| graph | way | items ms | collate ms | step ms | all ms | torchcell / this | peak MB | torchcell / this |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        theirs = next(r for r in rows if r["name"] == row["name"])
        times = " | ".join(f"{row[part]:.1f}" for part in (*PARTS, "all"))
        ratios = [theirs[key] / max(row[key], 1e-9) for key in ("all", "peak_mb")]
        graph = f"{row['name']}, {row['edges']:,} edges, width {row['width']}, {row['batch']} samples"
        lines.append(
            f"| {graph} | {WAYS[row['way']]} | {times} | {ratios[0]:.1f} | {row['peak_mb']:.0f} | {ratios[1]:.1f} |"
        )
    for row in rows:
        theirs = next(r for r in rows if r["name"] == row["name"])
        for what in ("loss", "gradient") if row is not theirs else ():
            apart = max(abs(a - b) / abs(b) for a, b in zip(row[what], theirs[what], strict=False))
            name = "losses" if what == "loss" else "squared norms of all gradients"
            lines.append(
                f"\n{row['name']}, {row['way']}: {name} {'equal' if not apart else f'{apart:.0e} apart'}"
            )
    return "\n".join(lines)


def main(given: list[str] | None = None) -> list[dict[str, Any]]:
    """Entry point of ``python -m experiments.benchmarks.bench_torchcell``."""
    import torchcell_client as client

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a hundredth of the graphs, three samples")
    parser.add_argument("--only", choices=("own", "large"), help="one of the two graphs")
    parser.add_argument("--rounds", type=int, nargs=2, default=(3, 1), help="counted steps, own and large")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(given)
    found = client.fetched()
    if found is None:
        print("torchcell cannot be fetched: PyPI is not reachable")
        return []
    client.put_on_path(found)
    single_thread()
    print(Machine.here().describe(), f"torchcell {client.VERSION}", "one thread", sep="; ", flush=True)
    scale, batch = (0.01, 3) if arguments.small else (1.0, 28)
    makers = {"own": (own_source, 32, arguments.rounds[0]), "large": (made_source, 16, arguments.rounds[1])}
    rows = []
    for name in [arguments.only] if arguments.only else makers:
        make, width, rounds = makers[name]
        with tempfile.TemporaryDirectory() as root:
            place = Place(name, Path(root), width, batch, 1 if arguments.small else rounds)
            rows += measure(place, make(scale, BATCHES * batch))
    print(shown(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
