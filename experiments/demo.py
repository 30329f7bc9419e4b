"""The demonstration behind ``make demo``: a real dataset preprocessed, verified, read back and trained on.

    python -m experiments.demo root=demo/ecoli samples=20000

Settings are ``key=value``: ``root``, ``samples``, ``seed``, ``steps`` (of training) and ``workers`` (of the build). The
labels are kept in ``root/raw``, so that running the same line again, finished or killed, starts where it stopped.
"""

from __future__ import annotations

import csv
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch

import torchcell_cache as tc
from experiments.demo_training import Training, train
from torchcell_cache.core.files import make_dirs_durable, write_atomic
from torchcell_cache.core.progress import Progress
from torchcell_cache.sources.ecoli import ecoli_base_graph, ecoli_knockouts, ecoli_model

BATCH = 28


@dataclass(frozen=True, slots=True)
class Settings:
    root: str = "demo/ecoli"
    samples: int = 20_000
    seed: int = 0
    steps: int = 200
    workers: int = 2

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Settings:
        kinds = {field.name: type(field.default) for field in fields(cls)}
        given: dict[str, Any] = {}
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if not equals or name not in kinds:
                names = ", ".join(f"{kind}=..." for kind in kinds)
                raise tc.errors.SettingError(f"{argument!r} is no setting; settings: {names}")
            try:
                given[name] = kinds[name](value)
            except ValueError:
                raise tc.errors.SettingError(f"{name}={value!r} must be a whole number") from None
        return cls(**given)


def labelled_knockouts(settings: Settings) -> tc.PerturbationTable:
    """The knock-outs as a source; labels are computed once and kept as a table in ``root/raw``."""
    directory = make_dirs_durable(Path(settings.root) / "raw")  # before any work, should it not be possible
    model = ecoli_model()
    graph = ecoli_base_graph(model=model)
    path = directory / f"knockouts-{settings.samples}-seed-{settings.seed}.csv"
    if not path.exists():
        bar = Progress(settings.samples, 0, None, what="label by flux balance")
        knockouts, fitness = ecoli_knockouts(
            settings.samples, settings.seed, model=model, progress=lambda done, total: bar(done - bar.done)
        )
        bar.close("complete")
        write_atomic(path, _as_csv(knockouts, fitness.tolist()))
    return tc.PerturbationTable.from_csv(path, graph, perturbed="genes", phenotypes=["fitness"])


def _as_csv(knockouts: list[list[str]], fitness: list[float]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["genes", "fitness"])
    writer.writerows(("|".join(genes), value) for genes, value in zip(knockouts, fitness, strict=True))
    return text.getvalue().encode()


def median_us(work: Callable[[int], Any], repeats: int) -> float:
    """Median time of ``work(k)`` in microseconds, the first call not counted."""
    work(0)
    times = []
    for k in range(repeats):
        begun = time.perf_counter()
        work(k)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def read_cost(dataset: tc.PreprocessedDataset, seed: int) -> list[tuple[str, str]]:
    """Rows of the table: medians over shuffled samples, page cache warm, one thread."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    batches = [order[k : k + BATCH] for k in range(0, max(len(order) - BATCH, 1), BATCH)][:200]
    edge_types = [t for t in dataset.base_graph.edge_types if t[0] == t[2]]

    def masks(k: int) -> Any:
        batch = dataset.read_batch(batches[k])
        return [batch.edge_mask(edge_type) for edge_type in edge_types]

    one = median_us(lambda k: dataset[int(order[k])], min(1000, len(order)))
    ready = median_us(lambda k: dataset.read_batch(batches[k]).pack(), len(batches))
    masked = median_us(masks, len(batches))
    few = min(20, len(batches))
    expanded = median_us(lambda k: dataset.read_batch(batches[k]).to_pyg(), few)
    collated = median_us(lambda k: Batch.from_data_list(dataset.__getitems__(batches[k])), few)
    return [
        ("read dataset[i]", f"{one:,.0f} us, a HeteroData with masks"),
        (f"read batch of {BATCH}", f"{ready:,.0f} us shared, ready to be sent to a device"),
        ("", f"{masked:,.0f} us with boolean masks of all gene-gene edge types"),
        ("", f"{expanded:,.0f} us expanded to the PyG batch by to_pyg()"),
        ("", f"{collated:,.0f} us as samples collated by PyG"),
    ]


def table(rows: Sequence[tuple[str, str]], title: str) -> str:
    width = max(len(name) for name, _ in rows)
    length = max(width + 2 + max(len(text) for _, text in rows), len(title))
    lines = [title, "-" * length, *(f"{name:<{width}}  {text}" for name, text in rows), "-" * length]
    return "\n".join(lines)


def summary(
    dataset: tc.PreprocessedDataset,
    cost: list[tuple[str, str]],
    report: Any,
    training: Training,
    seconds: float,
) -> str:
    manifest = dataset.generation.manifest
    records = sum(shard.file.size for shard in manifest.shards)
    total = records + sum(file.size for file in manifest.files)
    count, built_s = manifest.num_samples, max(manifest.created["seconds"], 1e-3)
    checked = ", ".join(f"{number:,} {what}" for what, number in report.checked.items())
    rows = [
        ("samples", f"{count:,} knock-outs of one to three genes"),
        ("base graph", _graph_text(dataset.base_graph)),
        ("incidence index", f"{manifest.created['index_ms']:.0f} ms"),
        ("build rate", f"{count / built_s:,.0f} samples/s ({built_s:.2f} s, storage '{manifest.storage}')"),
        ("store size", f"{total / 1e6:.1f} MB, of it records {records / 1e6:.1f} MB"),
        ("bytes per sample", f"{records / count:.0f}"),
        *cost,
        ("verify level=full", f"{'ok' if report.ok else 'FAILED'}: {checked} in {report.seconds:.1f} s"),
        ("training loss", f"{training.first_loss:.3f} -> {training.last_loss:.3f} in {training.steps} steps"),
        (
            "training step",
            f"{training.step_ms:.1f} ms, of it waiting for data {100 * training.wait_share:.1f} %",
        ),
        ("everything", f"{seconds:.0f} s"),
    ]
    return table(rows, "E. coli iJO1366 knock-outs, preprocessed once")


def _graph_text(graph: Any) -> str:
    edges = sum(int(store.num_edges) for store in graph.edge_stores)
    return f"{graph['gene'].num_nodes:,} genes, {len(graph.edge_types)} edge types, {edges:,} edges"


def main(arguments: Sequence[str]) -> int:
    begun = time.perf_counter()
    settings = Settings.parse(arguments)
    torch.set_num_threads(1)  # small tensors: more threads cost more than they bring, and timings vary less
    print("1/4  the dataset: E. coli knock-outs and their growth", flush=True)
    source = labelled_knockouts(settings)
    print("2/4  preprocess", flush=True)
    dataset = tc.build(
        settings.root,
        source=source,
        processor=tc.LazySubgraphRepresentation(),
        storage="auto",
        num_workers=settings.workers,
        on_stale="rebuild",  # other samples= at the same root: a new generation beside the old one
    )
    print("3/4  verify every byte and every record", flush=True)
    report = tc.verify(settings.root, level="full")
    print(report, flush=True)
    print("4/4  read, and train one short epoch", flush=True)
    cost = read_cost(dataset, settings.seed)
    training = train(dataset, settings.steps, settings.seed)
    print(f"\n{summary(dataset, cost, report, training, time.perf_counter() - begun)}")
    return 0 if report.ok else 65


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except tc.errors.CacheError as error:
        print(error, file=sys.stderr)
        sys.exit(error.code)
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(tc.errors.EXIT_CANNOT_WRITE)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        sys.exit(tc.errors.EXIT_INTERRUPTED)
