"""Everything at once on one root beside an oracle: a builder, an appender, gc, verify and readers; the writers are killed.

What a store holds is said by a list of batches: a build or update puts one new batch in the place of everything, an append
adds one. A sample is computed from the number of its batch and its own number alone. The log (JSON lines) is written before
what it says can be seen, and is all that a process knows of the past: whoever was killed finds there what it had begun, and
a run that was killed as a whole goes on from it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import torch
from graphs import cell_graph
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.errors import BuildInProgressError, CacheError, CacheNotFoundError
from torchcell_cache.store.manifest import processed_dir, read_manifest

VICTIMS = ("builder", "appender", "gc")
MOST = 64  # samples of a batch; a label names both
BASE = cell_graph(num_genes=12)


# What a store must hold


def size(batch: int) -> int:
    """Samples of a batch."""
    return 3 + 7 * batch % 11


def perturbed(batch: int, number: int) -> list[int]:
    """The perturbed genes of a sample."""
    chance = np.random.default_rng([batch, number])
    return sorted(chance.choice(12, chance.integers(1, 5), replace=False).tolist())


def expected(kind: str, batch: int, number: int) -> dict[Any, dict[str, Any]]:
    """A sample by the slow definition."""
    label = float(batch * MOST + number)
    if kind == "delta":
        return oracle.lazy(BASE, perturbed(batch, number), [{"fitness": label}], ("fitness",), ())
    return oracle.stores_of(graph(batch, number))


def graph(batch: int, number: int) -> Data:
    """A sample as a plain graph."""
    chance = np.random.default_rng([batch, number])
    x = torch.from_numpy(chance.standard_normal((2 + number % 3, 3)).astype(np.float32))
    return Data(x=x, y=torch.tensor([float(batch * MOST + number)]))


def source(kind: str, batch: int) -> Any:
    """The source of a batch."""
    numbers = range(size(batch))
    if kind == "delta":
        labels = np.arange(size(batch), dtype=np.float32) + batch * MOST
        genes = [perturbed(batch, k) for k in numbers]
        return tc.PerturbationTable(BASE, genes, phenotypes={"fitness": labels})
    return [graph(batch, k) for k in numbers]


def settings(kind: str) -> dict[str, Any]:
    processor = tc.LazySubgraphRepresentation() if kind == "delta" else None
    return {"processor": processor, "storage": "delta", "shard_size": 4, "progress": False}


class Reading:
    """Checks every sample that is read against its definition, and says of which batches a store is made."""

    def __init__(self, kind: str) -> None:
        self.kind, self.checked = kind, 0
        self.known: dict[tuple[int, int], Any] = {}

    def content(self, read: Callable[[list[int]], list[Any]], count: int, chance: random.Random) -> list[int]:
        """The batches in their order; all samples are read, in random order and random company."""
        rows, labels = list(range(count)), [0] * count
        chance.shuffle(rows)
        while rows:
            some = [rows.pop() for _ in range(min(len(rows), chance.choice([1, 3, 20])))]
            for row, sample in zip(some, read(some), strict=True):
                labels[row] = self.check(sample)
        batches: list[int] = []
        while labels:
            batches.append(batch := labels[0] // MOST)
            assert labels[: size(batch)] == [batch * MOST + k for k in range(size(batch))], labels
            del labels[: size(batch)]
        return batches

    def check(self, sample: Any) -> int:
        label = int(sample["gene"].phenotype_values if self.kind == "delta" else sample.y)
        key = divmod(label, MOST)
        if key not in self.known:
            self.known[key] = expected(self.kind, *key)
        oracle.assert_stores_equal(oracle.stores_of(sample), self.known[key])
        self.checked += 1
        return label

    def published(self, root: Path, chance: random.Random) -> list[int]:
        """What the store holds now; nothing if there is none."""
        try:
            dataset = tc.PreprocessedDataset(root)
        except CacheNotFoundError:
            return []
        return self.content(dataset.__getitems__, len(dataset), chance)


# The log


class Log:
    """Lines that any process adds, each by one call, and everybody reads."""

    def __init__(self, path: Path) -> None:
        self.path, self._read = path, 0
        self._lines: list[dict[str, Any]] = []

    def add(self, who: str, event: str, **more: Any) -> None:
        line = json.dumps({"who": who, "event": event, **more}).encode() + b"\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        assert os.write(descriptor, line) == len(line)
        os.close(descriptor)

    def lines(self) -> list[dict[str, Any]]:
        """All lines so far."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            new = new[: new.rfind(b"\n") + 1]
            self._read += len(new)
            self._lines += map(json.loads, new.splitlines())
        return self._lines

    def pending(self, who: str) -> dict[str, Any] | None:
        """What somebody began and did not end."""
        mine = [line for line in self.lines() if line["who"] == who and line["event"] in ("begin", "end")]
        return mine[-1] if mine and mine[-1]["event"] == "begin" else None

    def next_batch(self, who: str) -> int:
        """A number that no batch has had; the two who make batches share the numbers between them."""
        first = 2 if who == "builder" else 1
        mine = [line.get("batch", 0) for line in self.lines() if line["who"] == who]
        return max(mine, default=0) + 2 if any(mine) else first

    def lost(self) -> set[str]:
        """Generations that a shard was taken from."""
        return {line["generation"] for line in self.lines() if line["event"] == "lose"}

    def seconds(self) -> float:
        """How long it has been running, in all its runs."""
        return sum(float(line.get("seconds", 0)) for line in self.lines())


def assert_possible(lines: list[dict[str, Any]], before: int, content: list[int]) -> None:
    """What a reader found was published when it opened the store, after ``before`` lines had been written."""
    began = {line["batch"]: line["who"] for line in lines if line["event"] == "begin" and "batch" in line}
    assert began.get(content[0]) == "builder", content
    assert all(began.get(batch) == "appender" for batch in content[1:]), content
    assert content[1:] == sorted(set(content[1:])), f"added twice or in another order: {content}"
    ends = [line for line in lines[:before] if line["event"] == "end" and "batch" in line]
    newest = max((line["batch"] for line in ends if line["who"] == "builder"), default=0)
    assert content[0] >= newest, f"{content} is older than the build of {newest}, which had returned"
    for line in ends:
        held = line["who"] != "appender" or line["content"][0] != content[0] or line["batch"] in content
        assert held, f"{content} lacks {line['batch']}, which had been added"


# Who works; each does one thing and is called again


class Work:
    """What a process has: the store, the log, its own chance."""

    def __init__(self, place: Path, kind: str, who: str) -> None:
        self.root, self.log, self.kind, self.who = place / "store", Log(place / "oracle.jsonl"), kind, who
        self.chance, self.reading = random.Random(f"{who} {time.time()}"), Reading(kind)
        self.kept: list[tuple[Any, list[int]]] = []

    def is_explained(self, error: CacheError) -> bool:
        """Whether an error is about a shard that was taken away."""
        return any(f"/{generation}/" in f"{error.path}" for generation in self.log.lost())

    def builder(self) -> None:
        """A new batch in the place of everything, or a shard lost and repaired."""
        task = self.log.pending("builder")
        if task is None:
            known = [line for line in self.log.lines() if line["who"] == "builder" and line["event"] == "end"]
            more = ("update", "repair") if known and self.kind == "delta" else ()
            op = self.chance.choice(["build", *more])
            batch = {} if op == "repair" else {"batch": self.log.next_batch("builder")}
            task = {"op": op, **batch}
            self.log.add("builder", "begin", **task)
            if op == "repair":
                self.lose()
        batch = {"batch": task["batch"]} if "batch" in task else {}
        if not batch:
            try:
                tc.repair(self.root, progress=False)
            except BuildInProgressError:
                return
        elif self.reading.published(self.root, self.chance)[:1] != [task["batch"]]:
            given = source(self.kind, task["batch"])
            if task["op"] == "update":
                tc.update(self.root, given, progress=False)
            else:
                tc.build(self.root, source=given, on_stale="rebuild", **settings(self.kind))
        self.log.add("builder", "end", op=task["op"], **batch)

    def lose(self) -> None:
        generation = read_manifest(self.root).generation
        self.log.add("builder", "lose", generation=generation)
        shards = sorted((processed_dir(self.root) / generation).glob("shard-*.lmdb"))
        for path in shards[:1]:
            path.unlink(missing_ok=True)

    def appender(self) -> None:
        """One more batch, unless there are many."""
        try:
            found = self.reading.published(self.root, self.chance)
        except CacheError as error:
            if self.is_explained(error):
                return
            raise
        task = self.log.pending("appender")
        if task is None and not 0 < len(found) < 6:
            time.sleep(0.02)
            return
        if task is None:
            task = {"op": "append", "batch": self.log.next_batch("appender")}
            self.log.add("appender", "begin", **task)
        if task["batch"] not in found:
            try:
                grown = tc.append(self.root, source(self.kind, task["batch"]), progress=False).generation
                found = self.reading.content(grown.graphs, len(grown), self.chance)
            except CacheError as error:
                if self.is_explained(error):
                    return
                raise
        self.log.add("appender", "end", op="append", batch=task["batch"], content=found)

    def gc(self) -> None:
        with contextlib.suppress(CacheNotFoundError):
            keep, unfinished = self.chance.choice([1, 1, 2, 3]), self.chance.random() < 0.1
            self.log.add("gc", "end", removed=len(tc.gc(self.root, keep=keep, unfinished=unfinished)))
        time.sleep(self.chance.uniform(0, 0.1))

    def verify(self) -> None:
        with contextlib.suppress(CacheNotFoundError):
            report = tc.verify(self.root, self.chance.choice(["quick", "full"]), progress=False)
            assert report.ok or report.generation in self.log.lost(), str(report)
            self.log.add("verify", "end", ok=report.ok, generation=report.generation)

    def reader(self) -> None:
        """Opens the store and reads all of it; goes on reading what it opened before."""
        before = len(self.log.lines())
        try:
            dataset = tc.PreprocessedDataset(self.root)
        except CacheNotFoundError:
            assert not any(
                line["who"] == "builder" and line["event"] == "end" for line in self.log.lines()[:before]
            )
            return
        self.kept.append((dataset, []))
        for number, (opened, content) in enumerate(self.kept):
            generation, checked = opened.generation.manifest.generation, self.reading.checked
            try:
                found = self.reading.content(opened.__getitems__, len(opened), self.chance)
            except CacheError as error:
                if self.is_explained(error):
                    continue
                raise
            if opened is dataset:
                assert_possible(self.log.lines(), before, found)
                self.kept[number] = (dataset, found)
            else:
                assert content in ([], found), "an open dataset changed"
            more = {"generation": generation, "content": found, "samples": self.reading.checked - checked}
            self.log.add(self.who, "read", **more)
        time.sleep(self.chance.uniform(0, 0.1))
        self.chance.shuffle(self.kept)
        del self.kept[self.chance.choice([0, 1, 2, 3]) :]


def start(place: Path, kind: str, who: str) -> int:
    """A process that works until it is told to stop and has nothing left that it began."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # should the test be killed
        warnings.simplefilter("ignore")
        work = Work(place, kind, who)
        step = getattr(work, who.rstrip("0123456789"))
        while work.log.pending(who) or not (place / "stop").exists():
            step()
        status = 0
    except BaseException:
        Log(place / "oracle.jsonl").add(who, "failed", text=traceback.format_exc())
    finally:
        os._exit(status)


def run(place: Path, kind: str, seconds: float, readers: int) -> Counter[str]:
    """Everything at once until it has run for so long in all; what was done, counted."""
    log, chance, stop = Log(place / "oracle.jsonl"), random.Random(), place / "stop"
    stop.unlink(missing_ok=True)
    everybody = (*VICTIMS, "verify", *(f"reader{k}" for k in range(readers)))
    pids = {who: start(place, kind, who) for who in everybody}
    last, failed = time.monotonic(), False
    while log.seconds() < seconds and not failed:
        time.sleep(10 ** chance.uniform(-2, 0.2))
        victim = chance.choice(VICTIMS)
        os.kill(pids[victim], signal.SIGKILL)
        failed = os.waitpid(pids[victim], 0)[1] != signal.SIGKILL
        failed |= any(os.waitpid(pid, os.WNOHANG)[0] for who, pid in pids.items() if who != victim)
        if failed:
            break
        pids[victim], now = start(place, kind, victim), time.monotonic()
        log.add("killer", "killed", victim=victim, seconds=round(now - last, 3))
        last = now
    stop.touch()
    for pid in pids.values():
        with contextlib.suppress(ChildProcessError):
            failed |= os.waitpid(pid, 0)[1] != 0
    wrong = [line for line in log.lines() if line["event"] == "failed"]
    assert not wrong, wrong[0]["who"] + ":\n" + wrong[0]["text"]
    assert not failed
    return counted(log.lines())


def counted(lines: list[dict[str, Any]]) -> Counter[str]:
    """How often each thing was done; every generation was the same for all who read it."""
    counts, contents = Counter[str](), {}
    for line in lines:
        who, event = line["who"].rstrip("0123456789"), line["event"]
        counts[f"{line.get('victim') or line.get('op', who)} {event}"] += 1
        counts["samples"] += line.get("samples", 0)
        counts["removed"] += line.get("removed", 0)
        if event == "read":
            assert contents.setdefault(line["generation"], line["content"]) == line["content"], line
    counts["generations read"] = len(contents)
    return counts


def finish(root: Path, kind: str, batches: list[int]) -> None:
    """What anybody may do at last, on this store or on a new one."""
    tc.build(root, source=source(kind, batches[0]), on_stale="rebuild", **settings(kind))
    for batch in batches[1:]:
        tc.append(root, source(kind, batch), progress=False)
    tc.gc(root, keep=1, unfinished=True)
